"""What a rank hands to collectives: counted where torch calls its process groups.

Works on every backend, torch's `fake` one too, which stands for any number of ranks in one process.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

#: How often a ring of many ranks sends the largest tensor of a call.
_TIMES = {"allreduce": 2}


class Traffic(TorchDispatchMode):
    """Counts while it is entered. `bytes`: of each call's largest tensor, the whole result or the
    whole input, by (collective, dtype). `calls`: alike.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes: Counter[tuple[str, str]] = Counter()
        self.calls: Counter[tuple[str, str]] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if func.namespace == "c10d":
            tensors = [leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor)]
            if tensors:
                largest = max(tensors, key=lambda tensor: tensor.nbytes)
                key = _name(func), str(largest.dtype).removeprefix("torch.")
                self.bytes[key] += largest.nbytes
                self.calls[key] += 1
        return func(*args, **(kwargs or {}))

    def sent(self, ranks: int) -> int:
        """Return the bytes that each of `ranks` sends, as rings send them."""
        whole = sum(_TIMES.get(name, 1) * size for (name, _), size in self.bytes.items())
        return round(whole * (ranks - 1) / ranks)


def _name(func: Any) -> str:
    """Return `allgather` of ``c10d::_allgather_base_`` and the like."""
    name: str = func._schema.name.split("::")[1]
    return name.strip("_").removesuffix("_base").replace("_", "")
