"""Regions beside the chunks of :mod:`helpers.train_stores`, with labels, of known content."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from helpers.builders import labels_file, unit_vectors
from helpers.train_stores import CLASSES
from mlcd.data import hdf5
from mlcd.data.embeddings import KIND, Embeddings


def with_regions(
    paths: dict[str, Any], root: Path, size: tuple[int, int] = (48, 48)
) -> dict[str, Any]:
    """Write regions of the images of `paths` (of that size in pixels); return all file options.

    Image i of a chunk has i mod 4 regions. Region number r of the chunk has the labels r, r + 1 and
    r + 2 modulo the classes.
    """
    found: dict[str, Any] = {**paths, "region_embeddings": [], "region_labels": []}
    for number, path in enumerate(paths["embeddings"]):
        source = Embeddings(path)
        rng = np.random.default_rng([5, number])
        image = np.repeat(np.arange(source.n), np.arange(source.n) % 4)
        low = rng.uniform(0, 0.6, (len(image), 2))
        high = np.minimum(low + rng.uniform(0.2, 0.8, low.shape), 1)
        datasets = {
            "embedding": unit_vectors(len(image), source.d, seed=number).astype(np.float16),
            "box": np.concatenate([low, high], axis=1).astype(np.float32),
            "image": image.astype(np.int64),
            "image_size": np.tile(np.array(size, np.int32), (len(image), 1)),
        }
        attributes = {
            "chunk": source.attributes["chunk"],
            "embeddings": source.fingerprint,
            "manifest": source.attributes["manifest"],
        }
        name = Path(path).name
        (root / "regions" / "labels").mkdir(parents=True, exist_ok=True)
        regions = root / "regions" / name
        hdf5.write(regions, KIND, datasets, attributes)
        labels = (np.arange(len(image))[:, None] + np.arange(3)) % CLASSES
        output = root / "regions" / "labels" / name
        found["region_embeddings"].append(str(regions))
        found["region_labels"].append(str(labels_file(output, labels, CLASSES, regions)))
    return found
