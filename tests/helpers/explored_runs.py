"""Labels, centers, embeddings and images of a few chunks, for the tables of `explore`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from helpers.builders import (
    centroids_file,
    embeddings_file,
    image_store,
    labels_file,
    set_attributes,
    unit_vectors,
)
from mlcd.data import hdf5


def write_run(results: Path, sizes: tuple[int, ...] = (7, 12), k: int = 6, l: int = 3) -> Path:
    """Write a run of chunks of these sizes; every image has its `l` nearest of `k` centers."""
    centers = unit_vectors(k, 8, seed=1)
    made = hdf5.fingerprint(centroids_file(results / "clusters" / "centroids.h5", centers))
    for number, size in enumerate(sizes):
        name = f"photos-{number:05d}"
        captions = [f"<i>caption</i> {number} {row}" for row in range(size)]
        manifest = image_store(
            results / "images" / name, size, captions=captions, seed=number, rows_per_tar=5
        )
        vectors = unit_vectors(size, 8, groups=k, seed=10 + number)
        embeddings = embeddings_file(
            results / "embeddings" / f"{name}.h5", vectors, manifest=manifest
        )
        labels = np.argsort(-vectors @ centers.T, axis=1, kind="stable")[:, :l]
        path = labels_file(results / "labels" / f"{name}.h5", labels, k, embeddings)
        set_attributes(path, centroids=made)
    return results
