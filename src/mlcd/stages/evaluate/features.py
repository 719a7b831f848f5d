"""Features of one data set through one model, computed once and kept in HDF5."""

from __future__ import annotations

import itertools
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from mlcd.config import Evaluate
from mlcd.config.labeled import Dataset
from mlcd.data import hdf5
from mlcd.data.decode import BadImage, decode
from mlcd.data.labeled import layout
from mlcd.data.labeled.sample import Sample
from mlcd.data.labeled.samples import samples
from mlcd.stages.evaluate.feature_models import FeatureModel
from mlcd.stages.evaluate.table import Table, refuse_not_finite, words_of
from mlcd.utils.errors import UserError
from mlcd.utils.files import sha256_json, state_dir
from mlcd.utils.fingerprint import code_hash
from mlcd.utils.logging import progress

#: Kind of the file.
KIND = "features"
#: Images of a part, which is what a job that is cut off loses at most; their files are in memory.
PART = 2048
_PART_KIND = "features of a part"
_COLUMNS = ("feature", "trunk")


def identity(section: Evaluate, dataset: Dataset, model: FeatureModel) -> str:
    """Return a hash of all that the features depend on: settings, model, the data set's file."""
    settings = json.loads(section.for_features())
    kept = (item for item in settings["datasets"] if item["name"] == dataset.name)
    del settings["pixel_side"]  # which the model's identity has, if it counts
    settings["datasets"] = [{key: item[key] for key in item if key != "path"} for item in kept]
    data = layout.identity(dataset)
    return sha256_json([code_hash("evaluate"), settings, model.identity, data])


def extract(
    section: Evaluate,
    dataset: Dataset,
    name: str,
    model: FeatureModel,
    output: str | os.PathLike[str],
    *,
    batch_size: int,
    workers: int,
    images: Iterable[Sample] | None = None,
) -> None:
    """Write features of `dataset` through `model` (called `name`) to `output`, as formats.md says.

    `images`: those of the data set to take, all by default.
    Cut off at any moment, the same call continues after the last whole part of :data:`PART` images.
    Images that cannot be decoded are counted by reason. Raises :class:`UserError` if their share
    exceeds `max_failed`, if there are no images, or if a feature is not finite.
    """
    attributes: dict[str, Any] = {
        "model": name,
        "dataset": dataset.name,
        "seed": model.seed,
        "identity": identity(section, dataset, model),
        "images": layout.identity(dataset),
    }
    if model.encoder_sha256 is not None:
        attributes["encoder_sha256"] = model.encoder_sha256
    state = state_dir(output, attributes)
    table = Table()
    parts: list[Path] = []
    given = samples(dataset) if images is None else images
    found = iter(progress(given, label=f"features of {dataset.name}", unit="image"))
    while block := list(itertools.islice(found, PART)):
        parts.append(state / f"{len(parts):05d}.h5")
        if not parts[-1].exists():
            _write_part(parts[-1], block, section, name, model, batch_size, workers)
        with hdf5.reading(parts[-1], _PART_KIND) as file:
            reasons = hdf5.whole(file, "reason")
        if len(reasons) != len(block):
            raise UserError(f"{parts[-1]}: of other images; remove {state} and rerun")
        for sample, reason in zip(block, reasons, strict=True):
            table.add(sample, reason.decode())
    table.check(section, dataset)
    with hdf5.writing(output, KIND, attributes) as writer:
        for part in parts:
            with hdf5.reading(part, _PART_KIND) as file:
                for column in _COLUMNS:
                    if column in file:
                        writer.append(column, hdf5.whole(file, column))
        for column, values in table.columns().items():
            writer.append(column, values)
    shutil.rmtree(state)


def _write_part(
    path: Path,
    block: list[Sample],
    section: Evaluate,
    name: str,
    model: FeatureModel,
    batch_size: int,
    workers: int,
) -> None:
    """Write the features of `block`, and the reason of each image that has none."""
    reasons: list[str] = []
    with hdf5.writing(path, _PART_KIND, {}) as writer:
        for batch in _batches(section, block, model, batch_size, workers, reasons):
            for column, rows in zip(_COLUMNS, model.encode(batch), strict=True):
                if rows is None:
                    continue
                refuse_not_finite(name, rows)
                writer.append(column, rows.astype(np.float32))
        writer.append("reason", words_of(reasons))


def _batches(
    section: Evaluate,
    block: list[Sample],
    model: FeatureModel,
    size: int,
    workers: int,
    reasons: list[str],
) -> Iterator[np.ndarray]:
    """Yield uint8 batches in the order of `block`; the next is decoded while one is encoded.

    To `reasons` goes why each image is in none, '' for those that are.
    """

    def prepare(sample: Sample) -> np.ndarray | BadImage:
        try:
            return model.prepare(decode(sample.data, max_pixels=section.max_pixels))
        except BadImage as error:
            return error

    with ThreadPoolExecutor(workers) as pool:
        waiting: list[Future[np.ndarray | BadImage]] = []
        for start in range(0, len(block) + size, size):
            following = [pool.submit(prepare, one) for one in block[start : start + size]]
            done = [future.result() for future in waiting]
            reasons += [item.reason if isinstance(item, BadImage) else "" for item in done]
            pixels = [item for item in done if not isinstance(item, BadImage)]
            if pixels:
                yield np.stack(pixels)
            waiting = following
