"""One clustering by many processes: each assigns its share of the rows, sums are added up exactly.

The sums are integers (:mod:`mlcd.cluster.sums`), so that adding them over any number of ranks gives
the same bits, and every rank then moves the centres by itself to the same place.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from mlcd.cluster.checkpoint import State
from mlcd.cluster.sums import ClusterSums
from mlcd.errors import UserError

Result = TypeVar("Result")

#: Longest that a collective waits, in minutes: 24 days, about as many milliseconds as an int holds.
#: Rank 0 makes the first centres alone, and the slowest rank's pass may take hours; dead ranks are
#: the launcher's to notice.
_TIMEOUT_MIN = 24 * 24 * 60
#: Bytes added up at once: the backend copies them.
_REDUCED_BYTES = 64 << 20


class Alone:
    """The group of one process, which needs no torch."""

    rank, size = 0, 1

    def agree(self, work: Callable[[], Result]) -> Result:
        """Do `work` on each rank; a UserError of one is raised by all, so that none waits."""
        return work()

    def share(self, make: Callable[[], State]) -> State:
        """Return the state that rank 0 makes."""
        return make()

    def add_up(self, sums: ClusterSums) -> None:
        """Replace the sums of each rank by those of all ranks."""


class Ranks(Alone):
    """The ranks of the torch.distributed process group that this process has joined."""

    def __init__(self) -> None:
        import torch.distributed as dist

        self.rank, self.size = dist.get_rank(), dist.get_world_size()

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
        return result  # type: ignore[return-value]

    def share(self, make: Callable[[], State]) -> State:
        import torch
        import torch.distributed as dist

        state = self.agree(lambda: make() if self.rank == 0 else None)
        about: list[Any] = [state and (state.centres.shape, state.records)]
        dist.broadcast_object_list(about)
        shape, records = about[0]
        if state is None:
            state = State(np.empty(shape, np.float32), np.zeros(shape[0], np.int64), records)
        dist.broadcast(torch.from_numpy(state.centres), src=0)
        dist.broadcast(torch.from_numpy(state.size), src=0)
        return state

    def add_up(self, sums: ClusterSums) -> None:
        import torch
        import torch.distributed as dist

        step = max(1, _REDUCED_BYTES // sums.total[0].nbytes)
        for start in range(0, len(sums.total), step):
            dist.all_reduce(torch.from_numpy(sums.total[start : start + step]))
        dist.all_reduce(torch.from_numpy(sums.size))


def cluster_rank(
    embeddings: list[str], section: dict[str, Any], limit: int, folder: str, device: str,
    threads: int,
) -> None:  # fmt: skip
    """Run on every rank: the iterations of one clustering, whose states rank 0 saves in `folder`.

    `limit` bytes are each rank's. Raises :class:`mlcd.errors.UserError`.
    """
    from mlcd.cluster.kmeans import cluster
    from mlcd.config import Cluster
    from mlcd.distributed import process_group

    # The sums are in main memory, on whatever device the search runs.
    with process_group("cpu", inputs=embeddings, timeout_min=_TIMEOUT_MIN):
        values = Cluster(**section)
        cluster(embeddings, values, limit, Path(folder), device, threads, Ranks())
