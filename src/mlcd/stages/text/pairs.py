"""Pairs of image embedding and caption, read by blocks, in an order that all ranks share."""

from __future__ import annotations

import functools
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch

from mlcd.config.text import Text
from mlcd.data.captions import Captions
from mlcd.data.embeddings import Embeddings
from mlcd.training.shuffle import Order

#: Steps that are read ahead of training.
_AHEAD = 2


class CaptionBatch(NamedTuple):
    """One rank's pairs: embeddings float32 [b, d] and tokens int64 [b, context_length]."""

    image: torch.Tensor
    token: torch.Tensor


class Pairs:
    """The captioned images of all chunks; `order` says which a step sees.

    A step's pairs are a function of (seed, epoch, step). The loss does not depend on which rank
    holds which pair, so each takes a run of the step's pairs sorted by place: a rank then reads
    about its share of a window's blocks, and keeps no more than that in memory.
    """

    def __init__(
        self,
        embeddings: Sequence[str],
        captions: Sequence[str],
        section: Text,
        rank: int,
        world_size: int,
    ) -> None:
        self._embeddings = [Embeddings(path) for path in embeddings]
        self._captions = [Captions(path) for path in captions]
        counts = np.array([file.n for file in self._captions], np.int64)
        self._ends = np.cumsum(counts)
        self._block = section.shuffle_block
        self._rank, self._share = rank, section.batch_size // world_size
        self.order = Order(
            counts,
            batch=section.batch_size,
            block=section.shuffle_block,
            window=section.shuffle_window,
            seed=section.seed,
        )
        # A share of two windows (a step may cross into the next), and the blocks at its borders.
        blocks = 2 * section.shuffle_window // (section.shuffle_block * world_size) + 8
        self._read_block = functools.lru_cache(maxsize=blocks)(self._block_of)

    def read(self, step: int) -> CaptionBatch:
        """Return this rank's pairs of a step of the run."""
        epoch, step = divmod(step, self.order.steps_per_epoch)
        wanted = np.sort(self.order.indices(epoch, step))
        mine = wanted[self._rank * self._share : (self._rank + 1) * self._share]
        file = np.searchsorted(self._ends, mine, side="right")
        place = mine - np.concatenate([[0], self._ends])[file]
        block = place // self._block
        images, tokens = [], []
        runs = np.flatnonzero(np.diff(file, prepend=-1) | np.diff(block, prepend=-1))
        for first, last in zip(runs, [*runs[1:], len(mine)], strict=True):
            image, token = self._read_block(int(file[first]), int(block[first]))
            inside = place[first:last] - block[first] * self._block
            images.append(image[inside])
            tokens.append(token[inside])
        return CaptionBatch(
            torch.from_numpy(np.concatenate(images)),
            torch.from_numpy(np.concatenate(tokens).astype(np.int64)),
        )

    def batches(self, start: int, stop: int) -> Iterator[CaptionBatch]:
        """Iterate over the batches of steps `start` … `stop` − 1, read ahead by a thread."""
        with ThreadPoolExecutor(1) as pool:
            waiting: deque[Future[CaptionBatch]] = deque()
            for step in range(start, stop):
                waiting.append(pool.submit(self.read, step))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def _block_of(self, file: int, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Return embedding float32 [m, d] and token uint16 [m, context_length] of a block."""
        captions = self._captions[file]
        start = block * self._block
        row, token = captions.read(start, min(start + self._block, captions.n))
        vectors = self._embeddings[file].read(int(row[0]), int(row[-1]) + 1)
        return vectors[row - row[0]], token
