"""Which images each rank reads, and the reading: from tars kept open, in the order on disk."""

from __future__ import annotations

import os
from typing import NamedTuple

import numpy as np
import torch
from torch.utils.data import get_worker_info

from mlcd.config.mosaic import Mosaic
from mlcd.data.decode import BadImage
from mlcd.data.pointers import advise as advise_indexed
from mlcd.data.pointers import is_index
from mlcd.data.tars import OpenTars
from mlcd.stages.train.inputs import Index
from mlcd.stages.train.region_rows import RegionRows
from mlcd.training import mosaics
from mlcd.training.crops import Augment
from mlcd.training.read_ahead import Boxes, ImageBatch
from mlcd.training.shuffle import Order
from mlcd.utils.errors import UserError


class Reads(NamedTuple):
    """How the reads of a run of images are spread over the processes of a machine.

    `every`: of how many processes this is number `number`. `alone`: they are all that read the
    step's images, so that each block of a window is read whole on this machine.
    """

    number: int
    every: int
    alone: bool


class Steps:
    """Item i is micro-batch i mod m of step i div m, where a step has m micro-batches per rank.

    With a `mosaic` some rows of a micro-batch are tiles of canvases (:mod:`mlcd.training.mosaics`).
    With `regions` its rows are its images, and then so many regions of each.
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
        mosaic: Mosaic | None = None,
        regions: RegionRows | None = None,
    ) -> None:
        self._index = index
        self._order = order
        self._augment = augment
        self._rank = rank
        self._world_size = world_size
        self._micro_batches = micro_batches
        self._tars = OpenTars()
        self._advised: tuple[int, int] | None = None
        self._share = order.batch // world_size // micro_batches
        self._layout = mosaics.Layout.of(mosaic, self._share)
        self._regions = regions
        #: The last micro-batch whose regions were asked for, and these.
        self._chosen: tuple[int, tuple[np.ndarray, np.ndarray]] | None = None
        self._tile = augment._replace(side=augment.side // self._layout.grid)
        self.images = self._layout.images  #: of an item
        self.shape = (3, augment.side, augment.side)  #: of an image

    def __getitem__(self, item: int) -> ImageBatch:
        """Return a micro-batch. Raises :class:`UserError` for an image that cannot be read."""
        images = np.empty((self.images, *self.shape), np.uint8)
        self.read(item, range(self.images), images)
        return ImageBatch(torch.from_numpy(images), self.labels(item), self.boxes(item))

    def labels(self, item: int) -> torch.Tensor:
        """Return int64 [n, l] of a micro-batch."""
        label = self._index.label[self._rows(item)].astype(np.int64)
        if self._regions is not None:
            label = np.concatenate([label, self._of_regions(item, self._regions)[1]])
        return torch.from_numpy(label)

    def boxes(self, item: int) -> Boxes | None:
        """Return where the tiles or regions of a micro-batch lie; None where there are none."""
        if self._regions is None:
            return self._layout.boxes()
        owner = torch.arange(self.images).repeat_interleave(self._regions.count)
        box = torch.from_numpy(self._of_regions(item, self._regions)[0])
        return Boxes(box, owner, self.images)

    def _of_regions(self, item: int, regions: RegionRows) -> tuple[np.ndarray, np.ndarray]:
        """Return boxes and labels of a micro-batch's regions."""
        if self._chosen is None or self._chosen[0] != item:
            epoch = item // self._micro_batches // self._order.steps_per_epoch
            self._chosen = item, regions.of(self._rows(item), epoch)
        return self._chosen[1]

    def read(self, item: int, part: range, images: np.ndarray) -> None:
        """Write images `part` of a micro-batch to uint8 [len(part), 3, side, side].

        Raises :class:`UserError`.
        """
        span = self._layout.rows_of(part)
        rows = self._rows(item)[span.start : span.stop]
        epoch = item // self._micro_batches // self._order.steps_per_epoch
        self._advise_window(item)
        # Neighbors in the index are neighbors on disk.
        for place in np.argsort(rows, kind="stable"):
            image, area = self._layout.place(span[place], self._augment.side)
            augment = self._augment if area is None else self._tile
            pixels = self._read(int(rows[place]), epoch, augment)
            images[image - part.start][area or ...] = pixels

    def advise(self, item: int, part: range) -> None:
        """Ask the system to read images `part` of a micro-batch ahead.

        Where one machine has all ranks, its processes have asked for whole blocks instead.
        """
        if self._reads().alone:
            return
        span = self._layout.rows_of(part)
        rows = np.sort(self._rows(item)[span.start : span.stop])
        places = self._index.place[rows]
        for tar in np.unique(places["tar"]):
            path = self._index.tars[tar]
            if not is_index(path):
                mine = places[places["tar"] == tar]
                stop = mine["offset"] + mine["size"]
                self._tars.advise(path, zip(mine["offset"].tolist(), stop.tolist(), strict=True))

    def _rows(self, item: int) -> np.ndarray:
        """Return the indices int64 [n] of a micro-batch's rows."""
        step, part = divmod(item, self._micro_batches)
        epoch, step = divmod(step, self._order.steps_per_epoch)
        mine = self._order.indices(epoch, step, self._rank, self._world_size)
        return self._layout.arranged(mine[part * self._share : (part + 1) * self._share])

    def _reads(self) -> Reads:
        worker = get_worker_info()
        workers, number = (worker.num_workers, worker.id) if worker else (1, 0)
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        rank = int(os.environ.get("LOCAL_RANK", "0"))
        return Reads(rank * workers + number, ranks * workers, ranks == self._world_size)

    def _advise_window(self, item: int) -> None:
        """At the start of a window, ask the system to read this process's share of its blocks.

        Blocks are long runs. Where several machines share a step, each needs a part of a block
        only, and asks for its images alone.
        """
        reads = self._reads()
        epoch, step = divmod(item // self._micro_batches, self._order.steps_per_epoch)
        window = (epoch, self._order.window_of(step))
        if window == self._advised or not reads.alone:
            return
        self._advised = window
        for first, last in self._order.runs(*window)[reads.number :: reads.every]:
            tar, _, start, _ = self._index.place[first].item()
            _, size, offset, _ = self._index.place[last - 1].item()
            path = self._index.tars[tar]
            if is_index(path):
                advise_indexed(path, start, offset + 1)
            else:
                self._tars.advise(path, [(start, offset + size)])

    def _read(self, index: int, epoch: int, augment: Augment) -> np.ndarray:
        tar, size, offset, digest = self._index.place[index].item()
        path = self._index.tars[tar]
        try:
            data = self._tars.read(path, offset, size, digest)
            return augment.decoded(data, epoch, index)
        except FileNotFoundError:
            raise UserError(f"{path}: no such file; rerun download for its chunk") from None
        except BadImage as error:
            raise UserError(
                f"{path}: the image at byte {offset} does not decode ({error}), though embed "
                "could; remove the tar's manifest.json and rerun from download"
            ) from None
