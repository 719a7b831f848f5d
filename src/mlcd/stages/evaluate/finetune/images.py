"""The images of a data set in one file, to be read in any order, as often as there are epochs.

A data set may be a stream (tars, parquets). So its images are copied once, as they are, into the
folder of the task's saved state, which goes when the task is done. Each is decoded once before the
training begins, so that one that cannot be decoded is counted, and stops no epoch.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlcd.config import Evaluate
from mlcd.config.labeled import Dataset
from mlcd.data import hdf5
from mlcd.data.decode import BadImage, decode
from mlcd.data.labeled.sample import Sample, judged
from mlcd.data.labeled.samples import samples
from mlcd.stages.evaluate.table import SPLITS, Table
from mlcd.training.crops import Augment
from mlcd.training.read_ahead import ImageBatch
from mlcd.training.shuffle import Order
from mlcd.utils.files import atomic_path
from mlcd.utils.logging import progress

_KIND = "labeled images"
_IMAGES, _TABLE = "images.bin", "images.h5"
#: Images that are decoded side by side, and held in memory.
_BLOCK = 256


def copy(section: Evaluate, dataset: Dataset, folder: Path, workers: int) -> None:
    """Write images.bin, then images.h5, into `folder`, unless they are there.

    Raises :class:`UserError` as the part features does: for fields that are not there, equal names,
    and more than `max_failed` of images that do not decode.
    """
    if (folder / _TABLE).exists():
        return
    table, sizes = Table(), [0]
    found = iter(progress(samples(dataset), label=f"images of {dataset.name}", unit="image"))
    with atomic_path(folder / _IMAGES) as temporary, temporary.open("wb") as file:
        for sample, reason in _looked_at(found, section.max_pixels, workers):
            if not reason:
                file.write(sample.data)
                sizes.append(len(sample.data))
            table.add(sample, reason)
        file.flush()
    table.check(section, dataset)
    columns = {**table.columns(), "start": np.cumsum(sizes, dtype=np.int64)}
    hdf5.write(folder / _TABLE, _KIND, columns, {"dataset": dataset.name})


def _looked_at(
    found: Iterator[Sample], max_pixels: int, workers: int
) -> Iterator[tuple[Sample, str]]:
    """Yield each sample and why it does not decode, '' if it does."""

    def look(sample: Sample) -> str:
        try:
            decode(sample.data, max_pixels=max_pixels)
        except BadImage as error:
            return error.reason
        return ""

    with ThreadPoolExecutor(workers) as pool:
        while block := list(itertools.islice(found, _BLOCK)):
            yield from zip(block, pool.map(look, block), strict=True)


class LabeledImages:
    """What :func:`copy` wrote: n images that decode.

    `split` words [n], validation being test where there is none to judge by; `label` int64 [n], −1
    for none; `class_name` the words that it counts over; `failed`: reason → images left out.
    """

    def __init__(self, folder: Path) -> None:
        with hdf5.reading(folder / _TABLE, _KIND) as file:
            columns = {name: hdf5.whole(file, name) for name in file}
            self.dataset = str(file.attrs["dataset"])
        self.label: np.ndarray = columns["label"].astype(np.int64)
        known = self.label >= 0
        self.split = judged(np.array(SPLITS)[columns["split"]], known)
        self.class_name: list[bytes] = columns["class_name"].tolist()
        reasons = Counter(reason.decode() for reason in columns["failed_reason"])
        self.failed = dict(sorted(reasons.items()))
        self._start = columns["start"]
        self._path = folder / _IMAGES
        self._file: int | None = None

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_name)

    def on(self, *splits: str) -> np.ndarray:
        """Return bool [n]: the images of these splits."""
        return np.isin(self.split, splits)

    def read(self, row: int) -> bytes:
        """Return the bytes of an image. Processes and threads may read side by side."""
        if self._file is None:
            self._file = os.open(self._path, os.O_RDONLY)
        first, last = (int(self._start[row + end]) for end in (0, 1))
        return os.pread(self._file, last - first, first)

    def counts(self) -> dict[str, Any]:
        """Return the images of each side, as the JSON of a model has them."""
        return {
            "train": int(self.on("train").sum()),
            "validation": int(self.on("validation").sum()),
            "test": int(self.on("test", "query", "gallery").sum()),
            "failed": self.failed,
        }


class Steps:
    """Item i is micro-batch i mod m of step i div m (:class:`mlcd.training.read_ahead.Steps`).

    `rows`: the train images among `images`, int64 [n], and their `label` int64 [n]. An epoch sees
    them in an order of its own; those that do not fill a step are left out of it.
    """

    def __init__(
        self,
        images: LabeledImages,
        rows: np.ndarray,
        label: np.ndarray,
        order: Order,
        augment: Augment,
        micro_batches: int,
    ) -> None:
        self._source, self._source_rows, self._label = images, rows, label
        self._order, self._augment, self._micro_batches = order, augment, micro_batches
        self.images = order.batch // micro_batches
        self.shape = (3, augment.side, augment.side)

    def __getitem__(self, item: int) -> ImageBatch:
        """Return a micro-batch."""
        pixels = np.empty((self.images, *self.shape), np.uint8)
        self.read(item, range(self.images), pixels)
        return ImageBatch(torch.from_numpy(pixels), self.labels(item))

    def labels(self, item: int) -> torch.Tensor:
        """Return int64 [b, 1] of a micro-batch."""
        return torch.from_numpy(self._label[self._rows(item)][:, None])

    def boxes(self, item: int) -> None:
        """Rows are images."""

    def read(self, item: int, part: range, images: np.ndarray) -> None:
        """Write images `part` of a micro-batch to uint8 [len(part), 3, side, side]."""
        epoch = item // self._micro_batches // self._order.steps_per_epoch
        for place, row in enumerate(self._rows(item)[part.start : part.stop].tolist()):
            source = int(self._source_rows[row])
            images[place] = self._augment.decoded(self._source.read(source), epoch, source)

    def advise(self, item: int, part: range) -> None:
        """One file, read in any order: the system's own cache is all there is to ask."""

    def _rows(self, item: int) -> np.ndarray:
        step, part = divmod(item, self._micro_batches)
        epoch, step = divmod(step, self._order.steps_per_epoch)
        mine = self._order.indices(epoch, step)
        return mine[part * self.images : (part + 1) * self.images]
