"""Captions of a data set's test images: through the text tower, and judged by their images."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import torch

from mlcd.config.labeled import IMAGE_TEXT, Dataset
from mlcd.data import hdf5
from mlcd.data.labeled import layout
from mlcd.data.labeled.sample import judged
from mlcd.data.labeled.samples import samples
from mlcd.models import text_tower as towers
from mlcd.stages.evaluate.cached import Features
from mlcd.stages.evaluate.retrieval import (
    RANKS,
    TEXTS,
    chance_of_a_hit,
    image_text_recall,
    read_embeddings,
)
from mlcd.stages.evaluate.table import to_bytes
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER, progress


def texts_part(dataset: Dataset, tower: towers.TextTower, output: str | os.PathLike[str]) -> None:
    """Write the features of all captions of test images, a file of kind `text_embeddings`.

    Without test images, validation is test. Raises :class:`UserError` if none has a caption.
    """
    if dataset.caption_field is None:
        raise UserError(f"evaluate.datasets: {dataset.name} has no captions; set caption_field")
    splits, known, captions = [], [], []
    for sample in progress(samples(dataset), label=f"texts of {dataset.name}", unit="image"):
        if sample.split != "train":
            splits.append(sample.split)
            known.append(sample.label is not None or bool(sample.tags))
            captions.append((sample.key, sample.captions))
    test = judged(np.array(splits, dtype=object), np.array(known, bool)) == "test"
    chosen = (captions[row] for row in np.flatnonzero(test).tolist())
    pairs = [(key, text) for key, texts in chosen for text in texts]
    if not pairs:
        raise UserError(
            f"evaluate.datasets: no test image of {dataset.name} has a caption in field "
            f"{dataset.caption_field!r}, which caption_field names; name another"
        )
    texts = [text for _, text in pairs]
    rows = towers.encode(tower, texts)
    if not torch.isfinite(rows).all():
        raise UserError("text: features that are not finite; train again with a lower text.lr")
    key = np.array([to_bytes(key) for key, _ in pairs], dtype="S")
    # Equal captions of several images cannot be told apart, however good the towers are.
    images: dict[str, set[str]] = {}
    for image, text in pairs:
        images.setdefault(text, set()).add(image)
    shared = sum(len(images[text]) > 1 for text in texts)
    attributes = {
        "dataset": dataset.name, "shared": shared, "images": layout.identity(dataset),
        "text_sha256": tower.sha256,
    }  # fmt: skip
    hdf5.write(output, TEXTS, {"embedding": rows.numpy(), "key": key}, attributes)
    LOGGER.info("%s: %d captions, %d of them of several images", dataset.name, len(texts), shared)


def dataset_of(path: str | os.PathLike[str]) -> str:
    """Return the name of the data set whose captions that a file of :func:`texts_part` holds."""
    with hdf5.reading(path, TEXTS) as file:
        return str(file.attrs.get("dataset", ""))


def judge(
    data: Features, path: str, result: dict[str, Any], tower: towers.TextTower | None = None
) -> None:
    """Add R@1, 5, 10 both ways, of test images and the captions in `path`, to `result`.

    Images without a caption are in neither gallery nor queries; their number is in the result.
    Raises :class:`UserError` for captions of other images, or of another tower than `tower`.
    """
    words, keys = read_embeddings(path, TEXTS)
    with hdf5.reading(path, TEXTS) as file:
        shared = int(file.attrs["shared"])
        images, tower_of = (str(file.attrs.get(key, "")) for key in ("images", "text_sha256"))
    if tower is not None and tower.sha256 and tower_of != tower.sha256:
        raise UserError(f"{path}: captions through another text tower; run --part texts again")
    if data.images and images != data.images:
        raise UserError(
            f"{path}: captions of other files of {data.dataset} than its features are of; run "
            "--part texts and --part features again"
        )
    if words.shape[1] != data.feature.shape[1]:
        raise UserError(
            f"{path}: dimension {words.shape[1]}, features of {data.dataset} have "
            f"{data.feature.shape[1]}; rerun text"
        )
    described = set(keys)
    test = data.on("test")
    rows = [row for row in np.flatnonzero(test).tolist() if data.key[row] in described]
    place = {data.key[row]: number for number, row in enumerate(rows)}
    # An image that could not be decoded has captions, and no features.
    kept = [number for number, key in enumerate(keys) if key in place]
    if not kept:
        raise UserError(f"{path}: captions of no image of {data.dataset}; rerun evaluate_texts")
    device = data.feature.device
    image = torch.tensor([place[keys[number]] for number in kept], device=device)
    found = image_text_recall(
        data.feature[torch.tensor(rows, device=device)],
        torch.from_numpy(words[kept]).to(device),
        image,
    )
    medians = {name: found.pop(name) for name in list(found) if name.endswith("median_rank")}
    result["scores"].update(found)
    # Of k answers drawn: an image has as many right ones as it has captions.
    of_image = torch.bincount(image, minlength=len(rows))
    for k in RANKS:
        drawn = chance_of_a_hit(of_image, torch.tensor(len(kept)), k)
        result["chance"][f"image_to_text_r{k}"] = float(drawn.mean())
        result["chance"][f"text_to_image_r{k}"] = min(1.0, k / len(rows))
    result[IMAGE_TEXT] = {
        "images": len(rows),
        "images_without_a_caption": int(test.sum()) - len(rows),
        "captions": len(kept),
        "captions_of_several_images": shared,
        **medians,
    }
