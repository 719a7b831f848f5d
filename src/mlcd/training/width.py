"""One process as rank 0 of many, by shapes alone: what a step holds, and what it exchanges.

Floats have shapes and no values (torch's fake tensors), so that a network of any size takes no
memory. Integers are real: labels and negatives decide which rows are touched. The process
group is torch's `fake` one, whose collectives return at once; the labels that other ranks would
send are drawn at random.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import FakeWork
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mlcd.launch.process_group import RankPlace, leave
from mlcd.models import vit
from mlcd.models.footprint import norms_as_on_cuda

#: Numbers below which a new float tensor keeps its values: counters, norms, learning rates.
_FEW = 2


@contextmanager
def rank_of(ranks: int) -> Iterator[RankPlace]:
    """Be rank 0 of so many in a fake process group, on a CPU that stands for a GPU."""
    # The module registers the backend.
    from torch.testing._internal.distributed.fake_pg import FakeStore

    place = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": str(ranks)}
    before = {name: os.environ.get(name) for name in place}
    os.environ.update(place)
    # torch leaves it untyped.
    store = FakeStore()
    dist.init_process_group("fake", store=store, rank=0, world_size=ranks)
    apply = nn.Module._apply
    # To move a network to the CPU, where it is; torch cannot with fake tensors that others hold.
    nn.Module._apply = lambda self, fn, recurse=True: self  # type: ignore[method-assign]
    try:
        with norms_as_on_cuda(), vit.lean():
            yield RankPlace(0, ranks, torch.device("cpu"))
    finally:
        nn.Module._apply = apply  # type: ignore[method-assign]
        leave()
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


class Shapes(TorchDispatchMode):
    """Lets floats be shapes while it is entered. classes: labels of other ranks are below it."""

    def __init__(self, classes: int = 1) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._classes = classes
        self._random = torch.Generator().manual_seed(0)
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        shapes = any(isinstance(tensor, FakeTensor) for tensor in tensors)
        if func.namespace == "c10d":
            return self._exchanged(func, args, kwargs, tensors, shapes)
        if func is torch.ops.aten._local_scalar_dense.default and shapes:
            # A value that the program asks for: a number, and no to "is one not finite?".
            return tensors[0].dtype != torch.bool and 1.0
        if func is torch.ops.aten.index.Tensor:
            args = (args[0], _without_masks(args[1]), *args[2:])
        if not shapes and not tensors:
            with self._fake:
                made = func(*args, **kwargs)
            if isinstance(made, Tensor) and made.is_floating_point() and made.numel() >= _FEW:
                return made
        return func(*args, **kwargs)

    def _exchanged(
        self,
        func: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        tensors: list[Tensor],
        shapes: bool,
    ) -> Any:
        if shapes:
            work = FakeWork().boxed()
            return work if len(func._schema.returns) == 1 else (args[0], work)
        result = func(*args, **kwargs)
        largest = max(tensors, key=lambda tensor: tensor.numel())
        if "allgather" in func._schema.name and largest.dtype == torch.int64:
            largest.random_(0, self._classes, generator=self._random)
        return result


def _without_masks(indices: list[Tensor | None]) -> list[Tensor | None]:
    """Return indices in place of masks: how many a mask takes is known of its values alone."""
    found: list[Tensor | None] = []
    for index in indices:
        if index is not None and index.dtype == torch.bool and not isinstance(index, FakeTensor):
            found += index.nonzero(as_tuple=True)
        else:
            found.append(index)
    return found
