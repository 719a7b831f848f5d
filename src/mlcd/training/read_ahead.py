"""Worker processes that read a rank's images ahead, in pieces of some tens of images.

Workers write pixels into a ring of pieces that they share with the rank. It is anonymous memory and
no file, so that the size of /dev/shm, which is small in containers, does not matter; and its size
does not depend on the micro-batch.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from mlcd.utils import disk
from mlcd.utils.errors import UserError
from mlcd.utils.processes import check_workers

#: Images of a piece at most, and bytes: one image at least.
_PIECE, _PIECE_BYTES = 32, 8 << 20
#: Pieces that a worker has read, or reads, before they are asked for.
_AHEAD = 2


class Boxes(NamedTuple):
    """Regions of a batch's images, where not every row is an image.

    The rows of the batch are its first `whole` images, and after them the boxes: `box` float32
    [m, 4], x0, y0, x1, y1 as shares of width and height; `owner` int64 [m], the image of each.
    """

    box: torch.Tensor
    owner: torch.Tensor
    whole: int


class ImageBatch(NamedTuple):
    """One rank's images uint8 [b, 3, side, side] and labels int64 [n, l] (−1 pads) of its rows.

    Rows are the images, or what `boxes` says.
    """

    images: torch.Tensor
    labels: torch.Tensor
    boxes: Boxes | None = None


class Steps(Protocol):
    """A rank's micro-batches by number: `images` of each, of `shape` (3, side, side)."""

    images: int
    shape: tuple[int, int, int]

    def __getitem__(self, item: int) -> ImageBatch:
        """Return a micro-batch. Raises :class:`UserError` for an image that cannot be read."""

    def labels(self, item: int) -> torch.Tensor:
        """Return int64 [n, l] of a micro-batch."""

    def boxes(self, item: int) -> Boxes | None:
        """Return the regions of a micro-batch; None where its rows are its images."""

    def read(self, item: int, part: range, images: np.ndarray) -> None:
        """Write images `part` of a micro-batch to uint8 [len(part), 3, side, side]."""

    def advise(self, item: int, part: range) -> None:
        """Ask the system to read images `part` of a micro-batch ahead."""


class Pieces(Dataset["int | UserError"]):
    """Item i is piece i mod p of micro-batch i div p, written to slot i mod s of the ring.

    It returns the slot; or a UserError where an image cannot be read: raised in a worker process,
    it would reach the user inside a traceback.
    """

    def __init__(self, steps: Steps, slots: int) -> None:
        self._steps = steps
        image = int(np.prod(steps.shape))
        self.images = min(steps.images, max(1, min(_PIECE, _PIECE_BYTES // image)))
        self.per_batch = -(-steps.images // self.images)
        # Workers inherit it: it belongs to no name and no file.
        memory = mmap.mmap(-1, slots * self.images * image)
        self.ring = np.frombuffer(memory, np.uint8).reshape(slots, self.images, *steps.shape)

    def place(self, item: int) -> tuple[int, range]:
        """Return the micro-batch of a piece, and which images of it."""
        batch, piece = divmod(item, self.per_batch)
        start = piece * self.images
        return batch, range(start, min(start + self.images, self._steps.images))

    def __getitem__(self, item: int) -> int | UserError:
        slot = item % len(self.ring)
        batch, part = self.place(item)
        worker = get_worker_info()
        try:
            # This worker's next piece; the one after it is asked for while that one is decoded.
            self._steps.advise(*self.place(item + (worker.num_workers if worker else 1)))
            self._steps.read(batch, part, self.ring[slot, : len(part)])
        except UserError as error:
            return error
        return slot


def batches(
    steps: Steps, start: int, stop: int, *, workers: int, pin: bool
) -> Iterator[ImageBatch]:
    """Iterate over items `start` … `stop` − 1 of `steps`, read ahead by `workers` processes.

    With 0 workers each batch is read when it is asked for. Which images come, and how they are
    cropped, does not depend on `workers`. `pin`: in memory that a GPU copies from by itself.
    Raises :class:`UserError` for an image that cannot be read, and for too many workers.
    """
    check_workers(workers)
    if not workers:
        found = (steps[item] for item in range(start, stop))
        return (_pinned(batch) for batch in found) if pin else found
    # A piece is sent to a worker when the one that many before it is handed over, which is copied
    # before the next is asked for. So this many are in use at a time.
    pieces = Pieces(steps, slots=workers * _AHEAD + 1)
    loader: Any = DataLoader(
        pieces,
        sampler=range(start * pieces.per_batch, stop * pieces.per_batch),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=_AHEAD,
        collate_fn=_unchanged,
        worker_init_fn=_one_thread,
        multiprocessing_context="fork",  # for the ring, which has no name
    )
    # Workers start now, in this thread: it is the one that learns when they end. Their queues have
    # locks there, of some kB each.
    with disk.writing(disk.SHARED_MEMORY):
        slots = iter(loader)
    return _one_ahead(_assembled(steps, pieces, slots, range(start, stop), pin=pin))


def _assembled(
    steps: Steps, pieces: Pieces, slots: Iterator[int | UserError], items: range, *, pin: bool
) -> Iterator[ImageBatch]:
    """Iterate over micro-batches, put together from their pieces as these come."""
    for item in items:
        images = torch.empty((steps.images, *steps.shape), dtype=torch.uint8, pin_memory=pin)
        for piece in range(pieces.per_batch):
            slot = next(slots)
            if isinstance(slot, UserError):
                # A new one: a frame that holds its own error keeps the workers for long.
                raise UserError(str(slot))
            _, part = pieces.place(piece)
            images[part.start : part.stop] = torch.from_numpy(pieces.ring[slot, : len(part)])
        yield ImageBatch(images, steps.labels(item), steps.boxes(item))


def _one_ahead(batches: Iterator[ImageBatch]) -> Iterator[ImageBatch]:
    """Iterate; a thread puts the next batch together while the caller uses this one."""
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, batches, None)
        try:
            while (batch := coming.result()) is not None:
                coming = pool.submit(next, batches, None)
                yield batch
        finally:
            # An error holds this frame, and would be held by it: workers would end much later.
            del coming


def _pinned(batch: ImageBatch) -> ImageBatch:
    return batch._replace(images=batch.images.pin_memory())


def _unchanged(item: Any) -> Any:
    return item


def _one_thread(worker: int) -> None:
    torch.set_num_threads(1)
