"""The collectives that the classifier needs; in one process each of them does nothing."""

from __future__ import annotations

from collections.abc import Callable

import torch.distributed as dist
from torch import Tensor

# torch 2.13 renames the two and warns of the older names.
gather_parts = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_reduce_scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor

# Backends without reduce-scatter; there a sum over all is made and the own part taken.
_NO_REDUCE_SCATTER = {"mpi"}


class Exchange:
    """Collectives over `group`, or over all ranks if a default process group exists, or none."""

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        active = dist.is_available() and dist.is_initialized()
        self.world = dist.get_world_size(group) if active else 1
        self.rank = dist.get_rank(group) if active else 0
        self.reduce_scatter = active and dist.get_backend(group) not in _NO_REDUCE_SCATTER

    def gather(self, part: Tensor) -> Tensor:
        """Return the parts [n, …] of all ranks in the order of ranks, [W · n, …]."""
        if self.world == 1:
            return part
        whole = part.new_empty(self.world * len(part), *part.shape[1:])
        gather_parts(whole, part.contiguous(), group=self.group)
        return whole

    def add(self, value: Tensor) -> None:
        """Add `value` over the ranks, in place."""
        if self.world > 1:
            dist.all_reduce(value, group=self.group)

    def scatter_sum(self, whole: Tensor) -> Callable[[], Tensor]:
        """Begin to add `whole` [W · n, …] over the ranks; the result waits and returns this
        rank's n rows of the sum.
        """
        if self.world == 1:
            return lambda: whole
        own = len(whole) // self.world
        if not self.reduce_scatter:
            work = dist.all_reduce(whole, group=self.group, async_op=True)
            part = whole[self.rank * own : (self.rank + 1) * own]
        else:
            part = whole.new_empty(own, *whole.shape[1:])
            work = _reduce_scatter(part, whole, group=self.group, async_op=True)

        def finish() -> Tensor:
            work.wait()
            return part

        return finish
