"""Features of one data set through one model, computed once and kept in HDF5."""

from __future__ import annotations

import itertools
import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np

from mlcd import datasets
from mlcd.config import Evaluate
from mlcd.config.evaluate import Dataset
from mlcd.errors import UserError
from mlcd.evaluate.datasets import Sample, samples
from mlcd.evaluate.models import FeatureModel
from mlcd.files import sha256_json
from mlcd.images import BadImage, decode
from mlcd.progress import LOGGER, progress
from mlcd.sources import code_hash
from mlcd.stores import h5

#: Kind of the file, and what the numbers of its column `split` mean.
KIND = "features"
SPLITS = datasets.SPLITS


def identity(section: Evaluate, dataset: Dataset, model: FeatureModel) -> str:
    """Return a hash of all that the features depend on: settings, model, the data set's file."""
    settings = json.loads(section.for_features())
    kept = (item for item in settings["datasets"] if item["name"] == dataset.name)
    del settings["pixel_side"]  # which the model's identity has, if it counts
    settings["datasets"] = [{key: item[key] for key in item if key != "path"} for item in kept]
    data = datasets.identity(dataset)
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
) -> None:
    """Write features of `dataset` through `model` (called `name`) to `output`; see docs/formats.md.

    Pictures that cannot be decoded are counted by reason. Raises :class:`UserError` if their share
    exceeds `max_failed`, if there are no pictures, or if a feature is not finite.
    """
    table = _Table()
    attributes: dict[str, Any] = {
        "model": name,
        "dataset": dataset.name,
        "seed": model.seed,
        "identity": identity(section, dataset, model),
    }
    if model.encoder_sha256 is not None:
        attributes["encoder_sha256"] = model.encoder_sha256
    with h5.writing(output, KIND, attributes) as writer:
        for batch in _batches(section, dataset, model, batch_size, workers, table):
            for column, rows in zip(("feature", "trunk"), model.encode(batch), strict=True):
                if rows is None:
                    continue
                if not np.isfinite(rows).all():
                    raise UserError(
                        f"{name}: features that are not finite; look at the encoder's weights, or "
                        "train again with a lower train.lr"
                    )
                writer.append(column, rows.astype(np.float32))
        table.check(section, dataset)
        for column, values in table.columns().items():
            writer.append(column, values)


class _Table:
    """What is known about the pictures, in their order; failed ones apart."""

    def __init__(self) -> None:
        self.kept: list[Sample] = []
        self.failed: list[tuple[str, str]] = []

    def keeps(self, sample: Sample, done: np.ndarray | BadImage) -> bool:
        """Note the outcome for one picture; True if it was decoded."""
        if isinstance(done, BadImage):
            self.failed.append((sample.key, done.reason))
            return False
        # Without its bytes: the table of a large data set must stay small.
        self.kept.append(replace(sample, data=b"", captions=[]))
        return True

    def check(self, section: Evaluate, dataset: Dataset) -> None:
        total = len(self.kept) + len(self.failed)
        if not total:
            raise UserError(f"{dataset.path}: no pictures; see docs/evaluation.md for what is read")
        if self.failed:
            self._check_failures(section, dataset, total)
        keys = Counter(sample.key for sample in self.kept)
        if keys and max(keys.values()) > 1:
            key = keys.most_common(1)[0][0]
            raise UserError(f"{dataset.path}: {keys[key]} pictures are called {key}; rename them")
        for option in ("label", "tags", "group"):
            name = getattr(dataset, f"{option}_field")
            if name is not None and not any(getattr(sample, option) for sample in self.kept):
                raise UserError(
                    f"{dataset.path}: no picture has a field {name!r}, which evaluate.datasets."
                    f"{option}_field of {dataset.name} names; correct it, or set it to null"
                )

    def _check_failures(self, section: Evaluate, dataset: Dataset, total: int) -> None:
        reasons = Counter(reason for _, reason in self.failed)
        words = ", ".join(f"{reason} {count}" for reason, count in sorted(reasons.items()))
        if len(self.failed) > section.max_failed * total:
            raise UserError(
                f"{dataset.path}: {len(self.failed)} of {total} pictures failed ({words}), the "
                f"first {self.failed[0][0]}; mend them or raise evaluate.max_failed"
            )
        LOGGER.warning("%s: %d of %d pictures failed: %s", dataset.name, len(self.failed), total,
                       words)  # fmt: skip

    def columns(self) -> dict[str, np.ndarray]:
        label, class_name = _numbered([sample.label for sample in self.kept])
        group, group_name = _numbered([sample.group for sample in self.kept])
        tag_name = sorted({tag for sample in self.kept for tag in sample.tags})
        number = {tag: index for index, tag in enumerate(tag_name)}
        pairs = [(row, number[t]) for row, sample in enumerate(self.kept) for t in sample.tags]
        return {
            "key": _bytes([sample.key for sample in self.kept]),
            "split": np.array([SPLITS.index(sample.split) for sample in self.kept], np.int8),
            "label": label,
            "class_name": _bytes(class_name),
            "tag": np.array(pairs, np.int32).reshape(-1, 2),
            "tag_name": _bytes(tag_name),
            "group": group,
            "group_name": _bytes(group_name),
            "failed_key": _bytes([key for key, _ in self.failed]),
            "failed_reason": _bytes([reason for _, reason in self.failed]),
        }


def _batches(
    section: Evaluate,
    dataset: Dataset,
    model: FeatureModel,
    size: int,
    workers: int,
    table: _Table,
) -> Iterator[np.ndarray]:
    """Yield uint8 batches in the data set's order; the next is decoded while one is encoded."""

    def prepare(sample: Sample) -> np.ndarray | BadImage:
        try:
            return model.prepare(decode(sample.data, max_pixels=section.max_pixels))
        except BadImage as error:
            return error

    found = iter(progress(samples(dataset), label=f"features of {dataset.name}", unit="pictures"))
    with ThreadPoolExecutor(workers) as pool:
        waiting: list[tuple[Sample, Future[np.ndarray | BadImage]]] = []
        while True:
            block = list(itertools.islice(found, size))
            following = [(sample, pool.submit(prepare, sample)) for sample in block]
            pixels = [
                done for sample, future in waiting if table.keeps(sample, done := future.result())
            ]
            if pixels:
                yield np.stack(pixels)
            if not block:
                return
            waiting = following


def _numbered(values: list[str | None]) -> tuple[np.ndarray, list[str]]:
    """Return int32 [n] places in the sorted distinct values (−1 where None), and those values."""
    names = sorted({value for value in values if value is not None})
    number = {name: index for index, name in enumerate(names)}
    return np.array([number.get(value, -1) for value in values], np.int32), names


def _bytes(words: list[str]) -> np.ndarray:
    return np.array([to_bytes(word) for word in words], dtype="S")


def to_bytes(word: str) -> bytes:
    """Return a key or name as UTF-8; bytes of a file's name that are none as they are."""
    try:
        return word.encode(errors="surrogateescape")
    except UnicodeEncodeError:  # JSON may hold half a surrogate pair
        return word.encode(errors="replace")
