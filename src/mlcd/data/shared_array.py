"""An array in memory that processes share, which is no file: /dev/shm may be of any size."""

from __future__ import annotations

import mmap
import os
from multiprocessing import reduction
from typing import Any

import numpy as np


class SharedArray:
    """`array`: uint8 of `shape`, the same memory here and in a process that it is given to.

    It is given as an argument of a process of :mod:`multiprocessing` that is started by spawn.
    """

    def __init__(self, shape: tuple[int, ...]) -> None:
        self._shape = shape
        self._handle = os.memfd_create("mlcd")
        os.ftruncate(self._handle, self._bytes)
        self._map()

    def _map(self) -> None:
        memory = mmap.mmap(self._handle, self._bytes)
        self.array = np.frombuffer(memory, np.uint8).reshape(self._shape)

    @property
    def _bytes(self) -> int:
        return max(1, int(np.prod(self._shape, dtype=np.int64)))

    def __getstate__(self) -> dict[str, Any]:
        return {"shape": self._shape, "handle": reduction.DupFd(self._handle)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._shape, self._handle = state["shape"], state["handle"].detach()
        self._map()

    def close(self) -> None:
        """Give up the handle. The memory goes when nobody has an array of it any more."""
        os.close(self._handle)
