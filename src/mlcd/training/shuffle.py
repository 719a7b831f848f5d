"""The order of images: a pure function of (seed, epoch, step), global yet mostly sequential.

Images lie in tars; a uniform shuffle over all of them would make every read a random one. So each
tar is cut into blocks of neighbors; an epoch shuffles all blocks of all chunks, cuts the sequence
into windows of many blocks, and shuffles the images inside each window. A reader that fetches a
window's blocks reads long runs, and any two images of the set may meet in a batch.
"""

from __future__ import annotations

import functools

import numpy as np

#: Distinguishes the streams of random numbers that one seed feeds.
_BLOCKS, _WINDOW = 1, 2


class Order:
    """Which images step t of an epoch sees.

    `counts`: images of each tar, int [tars], in the order of the index, N together; `block` and
    `window` are in images; `batch` is the global batch. The last N mod `batch` images of an
    epoch's order are left out; they differ from epoch to epoch. Memory grows with N / `block`.
    `by_place`: a step's images are sorted before ranks take their shares, so that each rank reads
    from its own part of a window's blocks.
    """

    def __init__(
        self,
        counts: np.ndarray,
        *,
        batch: int,
        block: int,
        window: int,
        seed: int,
        by_place: bool = False,
    ) -> None:
        self.n = int(counts.sum())
        self.batch = batch
        self.steps_per_epoch = self.n // batch
        self._seed = seed
        self._window = window
        self._by_place = by_place
        # A block starts wherever a new tar does, and after every `block` images of one tar.
        blocks = -(-counts // block)
        first_block = np.repeat(np.cumsum(blocks) - blocks, blocks)
        first_image = np.repeat(np.cumsum(counts) - counts, blocks)
        self._starts = first_image + (np.arange(len(first_block)) - first_block) * block
        self._lengths = np.diff(self._starts, append=self.n)

    def indices(self, epoch: int, step: int, rank: int = 0, world_size: int = 1) -> np.ndarray:
        """Return the indices int64 [batch / world_size] of the images that a rank sees.

        The ranks' parts, put together in order, are the step's global batch, which does not depend
        on `world_size`.
        """
        share = self.batch // world_size
        if self._by_place:
            return self._sorted(epoch, step)[rank * share : (rank + 1) * share]
        start = step * self.batch + rank * share
        return self._positions(epoch, start, start + share)

    def window_of(self, step: int) -> int:
        """Return the window in which a step of an epoch starts."""
        return step * self.batch // self._window

    def runs(self, epoch: int, window: int) -> list[tuple[int, int]]:
        """Return (first, last + 1) of the images of each block that a window takes from."""
        blocks = self._blocks_of(epoch, window)
        return [(int(self._starts[b]), int(self._starts[b] + self._lengths[b])) for b in blocks]

    @functools.lru_cache(maxsize=2)  # noqa: B019 (an Order lives as long as its process)
    def _sorted(self, epoch: int, step: int) -> np.ndarray:
        """Return the images of a step, sorted."""
        return np.sort(self._positions(epoch, step * self.batch, (step + 1) * self.batch))

    def _positions(self, epoch: int, start: int, stop: int) -> np.ndarray:
        parts = []
        while start < stop:
            window, first = divmod(start, self._window)
            last = min(self._window, first + stop - start)
            parts.append(self._shuffled(epoch, window)[first:last])
            start += last - first
        return np.concatenate(parts)

    # Several windows: one step may end in the next window, and neighbors alternate in workers.
    @functools.lru_cache(maxsize=4)  # noqa: B019
    def _shuffled(self, epoch: int, window: int) -> np.ndarray:
        """Return the images of a window, shuffled."""
        order, ends = self._epoch(epoch)
        blocks = self._blocks_of(epoch, window)
        members = np.concatenate([self._starts[b] + np.arange(self._lengths[b]) for b in blocks])
        # The first and last block may lie partly in the neighboring windows.
        first_block = np.searchsorted(ends, window * self._window, side="right")
        before = ends[first_block] - self._lengths[order[first_block]]
        cut = window * self._window - before
        members = members[cut : cut + self._window]
        rng = np.random.default_rng([self._seed, _WINDOW, epoch, window])
        return members[rng.permutation(len(members))]

    def _blocks_of(self, epoch: int, window: int) -> np.ndarray:
        """Return the blocks that hold a window's images, in the epoch's order."""
        order, ends = self._epoch(epoch)
        first = np.searchsorted(ends, window * self._window, side="right")
        last = np.searchsorted(ends, min((window + 1) * self._window, self.n), side="left")
        return order[first : last + 1]

    @functools.lru_cache(maxsize=2)  # noqa: B019
    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the epoch's order of blocks and the position after each."""
        rng = np.random.default_rng([self._seed, _BLOCKS, epoch])
        order = rng.permutation(len(self._starts))
        return order, np.cumsum(self._lengths[order])


def step_of(order: Order, epoch: int, index: int) -> int | None:
    """Return the step of an epoch that sees an image; None if the epoch leaves it out."""
    block = int(np.searchsorted(order._starts, index, side="right")) - 1
    blocks, ends = order._epoch(epoch)
    last = int(ends[np.flatnonzero(blocks == block)[0]])
    first = last - int(order._lengths[block])
    for window in range(first // order._window, (last - 1) // order._window + 1):
        found = np.flatnonzero(order._shuffled(epoch, window) == index)
        if len(found):
            step = (window * order._window + int(found[0])) // order.batch
            return step if step < order.steps_per_epoch else None
    return None
