"""Read pictures by offset from tars, crop, flip, and batch them, ahead of the training step."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset

from mlcd.errors import UserError
from mlcd.images import BadImage, decode
from mlcd.stores.images import read_at
from mlcd.train.inputs import Index
from mlcd.training.order import Order

#: Pictures over this size were refused by embed already; here it only bounds memory.
_MAX_PIXELS = 200_000_000
_CROP = 3


class Augment(NamedTuple):
    """Random resized crop (aspect 3/4 to 4/3) and flip, from (seed, epoch, picture) alone."""

    side: int  #: pixels of the square output
    min_area: float  #: least share of the picture that the crop keeps
    flip: bool
    seed: int

    def __call__(self, image: Image.Image, epoch: int, index: int) -> np.ndarray:
        """Return uint8 [3, side, side]."""
        rng = np.random.default_rng([self.seed, _CROP, epoch, index])
        box = self._box(rng, *image.size)
        image = image.resize(
            (self.side, self.side), Image.Resampling.BICUBIC, box=box, reducing_gap=2.0
        )
        pixels = np.asarray(image)
        if self.flip and rng.random() < 0.5:
            pixels = pixels[:, ::-1]
        return np.ascontiguousarray(pixels.transpose(2, 0, 1))

    def _box(self, rng: np.random.Generator, width: int, height: int) -> tuple[float, ...]:
        """Return left, top, right, bottom in pixels; the centre square if ten draws do not fit."""
        for _ in range(10):
            area = width * height * rng.uniform(self.min_area, 1)
            ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            w, h = math.sqrt(area * ratio), math.sqrt(area / ratio)
            if w <= width and h <= height:
                left, top = rng.uniform(0, width - w), rng.uniform(0, height - h)
                return left, top, left + w, top + h
        side = min(width, height)
        left, top = (width - side) / 2, (height - side) / 2
        return left, top, left + side, top + side


class Batch(NamedTuple):
    """One rank's pictures uint8 [b, 3, side, side] and labels int64 [b, l] (−1 pads)."""

    images: torch.Tensor
    labels: torch.Tensor


class Steps(Dataset["Batch | UserError"]):
    """Item i is micro-batch i mod m of step i div m, where a step has m micro-batches a rank.

    An item is a UserError where a picture cannot be read: raised in a worker process, it would
    reach the user inside a traceback.
    """

    def __init__(
        self,
        index: Index,
        order: Order,
        augment: Augment,
        *,
        rank: int,
        world_size: int,
        micro_batches: int,
    ) -> None:
        self._index = index
        self._order = order
        self._augment = augment
        self._rank = rank
        self._world_size = world_size
        self._micro_batches = micro_batches
        self._advised: tuple[int, int] | None = None

    def __getitem__(self, item: int) -> Batch | UserError:
        try:
            return self._batch(item)
        except UserError as error:
            return error

    def _batch(self, item: int) -> Batch:
        step, part = divmod(item, self._micro_batches)
        epoch, step = divmod(step, self._order.steps_per_epoch)
        self._advise(epoch, step)
        mine = self._order.indices(epoch, step, self._rank, self._world_size)
        size = len(mine) // self._micro_batches
        mine = mine[part * size : (part + 1) * size]
        images = np.stack([self._read(int(index), epoch) for index in mine])
        labels = self._index.label[mine].astype(np.int64)
        return Batch(torch.from_numpy(images), torch.from_numpy(labels))

    def _advise(self, epoch: int, step: int) -> None:
        """At the start of a window, ask the system to read its blocks, which are long runs."""
        window = (epoch, self._order.window_of(step))
        if window == self._advised:
            return
        self._advised = window
        for first, last in self._order.runs(*window):
            tar, _, start = self._index.place[first].item()
            _, size, offset = self._index.place[last - 1].item()
            advise(self._index.tars[tar], start, offset + size - start)

    def _read(self, index: int, epoch: int) -> np.ndarray:
        tar, size, offset = self._index.place[index].item()
        path = self._index.tars[tar]
        try:
            image = decode(read_at(path, offset, size), max_pixels=_MAX_PIXELS)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; rerun download for its chunk") from None
        except BadImage as error:
            raise UserError(
                f"{path}: the picture at byte {offset} does not decode ({error}), though embed "
                "could; remove the tar's manifest.json and rerun from download"
            ) from None
        return self._augment(image, epoch, index)


def batches(steps: Steps, start: int, stop: int, *, workers: int, pin: bool) -> Iterator[Batch]:
    """Iterate over items `start` … `stop` − 1 of `steps`, read ahead by `workers` processes.

    With 0 workers each batch is read when it is asked for. Which pictures come, and how they are
    cropped, does not depend on `workers`.
    """
    options: dict[str, Any] = {}
    if workers:
        options = {"prefetch_factor": 4, "worker_init_fn": _one_thread}
    loader = DataLoader(
        steps,
        sampler=range(start, stop),
        batch_size=None,
        num_workers=workers,
        pin_memory=pin,
        collate_fn=_unchanged,
        **options,
    )
    return _unwrapped(loader)


def _unwrapped(loader: DataLoader[Batch]) -> Iterator[Batch]:
    """Iterate; a UserError in a worker arrives as itself, not inside the worker's traceback."""
    for item in loader:
        if isinstance(item, UserError):
            raise item
        yield item


def _unchanged(batch: Batch) -> Batch:
    return batch


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)


def advise(path: Path, start: int, length: int) -> None:
    """Ask the system to read a run of a file ahead; a missing file is found when it is read."""
    with contextlib.suppress(OSError), path.open("rb") as handle:
        os.posix_fadvise(handle.fileno(), start, length, os.POSIX_FADV_WILLNEED)
