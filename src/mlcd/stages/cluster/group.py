"""One clustering by many processes: each assigns its share of the rows, sums are added up exactly.

The sums are integers (:mod:`mlcd.stages.cluster.sums`), so that adding them over any number of
ranks gives the same bits. Each rank keeps the sums of its own rows from pass to pass, adds up
those of all ranks for its part of the clusters, and moves these; then all exchange what they moved.
"""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple, Protocol, TypeVar, cast

import numpy as np

from mlcd.neighbors.rows import Rows
from mlcd.stages.cluster.saved_state import State
from mlcd.stages.cluster.sums import Sums
from mlcd.utils.errors import UserError

Result = TypeVar("Result")

#: Bytes added up or sent at once: the backend copies them.
_BYTES_AT_ONCE = 64 << 20


class Part(NamedTuple):
    """Clusters start … stop − 1, which this rank moves, with the sums of all ranks.

    `total` int64 [stop − start, d] in units of 2^-bits, as an array, or a tensor on any device;
    `size` int64 [K] is that of all clusters.
    """

    start: int
    stop: int
    total: Any
    size: np.ndarray


class Group(Protocol):
    """The processes of one clustering, as each of them sees them."""

    rank: int
    size: int

    def agree(self, work: Callable[[], Result]) -> Result:
        """Do `work` on each rank; a UserError of one is raised by all, so that none waits."""

    def share(self, make: Callable[[], State | None]) -> State | None:
        """Return the state that rank 0 makes."""

    def collect(self, mine: np.ndarray) -> np.ndarray | None:
        """Return on rank 0 the arrays [·, …] of all ranks, one after another; None elsewhere."""

    def spread(self, values: np.ndarray) -> None:
        """Replace `values` by those of rank 0, in place."""

    def add_up(self, sums: Sums) -> Part:
        """Return the sums of all ranks for the clusters that this rank moves."""

    def exchange(self, values: np.ndarray) -> None:
        """Bring the part [start … stop − 1] of `values` [K, …] of each rank to all, in place."""


class SingleProcess:
    """A group of one, which needs no torch."""

    rank, size = 0, 1

    def agree(self, work: Callable[[], Result]) -> Result:
        """Return what `work` returns."""
        return work()

    def share(self, make: Callable[[], State | None]) -> State | None:
        """Return what `make` returns."""
        return make()

    def collect(self, mine: np.ndarray) -> np.ndarray | None:
        """Return `mine`."""
        return mine

    def spread(self, values: np.ndarray) -> None:
        """Leave the values as they are."""

    def add_up(self, sums: Sums) -> Part:
        """Return the sums as they are."""
        return Part(0, len(sums.size), sums.total, sums.size)

    def exchange(self, values: np.ndarray) -> None:
        """Leave the values as they are."""


class ProcessGroup:
    """The ranks of the torch.distributed process group that this process has joined.

    Its backend is gloo. `device` 'cuda' adds NCCL for sums and centers, through this rank's GPU; a
    collective of it waits `timeout_min` minutes at most.
    """

    def __init__(self, device: str = "cpu", *, timeout_min: float = 30.0) -> None:
        import torch
        import torch.distributed as dist

        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._device, self._group = torch.device("cpu"), None
        if device == "cuda":
            self._device = torch.device("cuda", torch.cuda.current_device())
            timeout = datetime.timedelta(minutes=timeout_min)
            self._group = dist.new_group(backend="nccl", timeout=timeout)

    def agree(self, work: Callable[[], Result]) -> Result:
        import torch.distributed as dist

        result, message = None, None
        try:
            result = work()
        except UserError as error:
            message = str(error)
        messages: list[str | None] = [None] * self.size
        dist.all_gather_object(messages, message)
        if found := [text for text in messages if text is not None]:
            raise UserError(found[0])
        return cast(Result, result)  # there is no message, so `work` returned it

    def share(self, make: Callable[[], State | None]) -> State | None:
        import torch
        import torch.distributed as dist

        state = self.agree(lambda: make() if self.rank == 0 else None)
        about: list[Any] = [state and (state.centers.shape, state.records)]
        dist.broadcast_object_list(about)
        if about[0] is None:
            return None
        shape, records = about[0]
        if state is None:
            state = State(np.empty(shape, np.float32), np.zeros(shape[0], np.int64), records)
        dist.broadcast(torch.from_numpy(state.centers), src=0)
        dist.broadcast(torch.from_numpy(state.size), src=0)
        return state

    def collect(self, mine: np.ndarray) -> np.ndarray | None:
        import torch
        import torch.distributed as dist

        mine = np.ascontiguousarray(mine)
        lengths: list[Any] = [None] * self.size
        dist.all_gather_object(lengths, len(mine))
        if self.rank:
            if len(mine):
                dist.send(torch.from_numpy(mine), dst=0)
            return None
        out = np.empty((sum(lengths), *mine.shape[1:]), mine.dtype)
        ends = np.cumsum([0, *lengths])
        out[: ends[1]] = mine
        for rank in range(1, self.size):
            if lengths[rank]:
                dist.recv(torch.from_numpy(out[ends[rank] : ends[rank + 1]]), src=rank)
        return out

    def spread(self, values: np.ndarray) -> None:
        import torch
        import torch.distributed as dist

        dist.broadcast(torch.from_numpy(values), src=0)

    def add_up(self, sums: Sums) -> Part:
        import torch
        import torch.distributed as dist

        k = len(sums.size)
        total = torch.as_tensor(sums.total)
        first, last = self._part(self.rank, k)
        mine = torch.empty((last - first, total.shape[1]), dtype=total.dtype, device=total.device)
        for rank in range(self.size):
            for start, stop in self._chunks(rank, k, total[:1].nbytes):
                # A copy: the sums of this rank's own rows stay what they are.
                chunk = total[start:stop].to(self._device, copy=True)
                dist.reduce(chunk, dst=rank, group=self._group)
                if rank == self.rank:
                    mine[start - first : stop - first] = chunk
        size = torch.as_tensor(sums.size).to(self._device, copy=True)
        dist.all_reduce(size, group=self._group)
        return Part(first, last, mine, size.cpu().numpy())

    def exchange(self, values: np.ndarray) -> None:
        import torch
        import torch.distributed as dist

        every = torch.from_numpy(values)
        for rank in range(self.size):
            for start, stop in self._chunks(rank, len(values), every[:1].nbytes):
                # Itself on the CPU, a copy on a GPU.
                chunk = every[start:stop].to(self._device)
                dist.broadcast(chunk, src=rank, group=self._group)
                if rank != self.rank and chunk.device.type != "cpu":
                    every[start:stop] = chunk

    def _part(self, rank: int, k: int) -> tuple[int, int]:
        """Return the first of the `k` clusters that `rank` moves, and the one after its last."""
        return k * rank // self.size, k * (rank + 1) // self.size

    def _chunks(self, rank: int, k: int, row_bytes: int) -> Iterator[tuple[int, int]]:
        """Cut the part of `rank` into ranges of _BYTES_AT_ONCE."""
        first, last = self._part(rank, k)
        step = max(1, _BYTES_AT_ONCE // row_bytes)
        for start in range(first, last, step):
            yield start, min(start + step, last)


def take(rows: Rows, ids: np.ndarray, group: Group) -> np.ndarray | None:
    """Return on rank 0 the rows `ids` (int64 [m], any order), float32 [m, d]; None elsewhere.

    Each rank of `group` reads those of its part of `rows`.
    """
    order = np.argsort(ids, kind="stable")
    first, count = rows.share
    mine = ids[order]
    mine = mine[np.searchsorted(mine, first) : np.searchsorted(mine, first + count)]
    found = group.collect(group.agree(lambda: rows.take(mine)))
    if found is None:
        return None
    if (order[1:] < order[:-1]).any():
        # In place of the sorted copy: two copies at most are held.
        out = np.empty_like(found)
        out[order] = found
        return out
    return found
