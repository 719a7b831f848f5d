"""Work on tiles of rows, on all threads."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import faiss
import threadpoolctl

Item = TypeVar("Item")
Result = TypeVar("Result")


class Workers:
    """`threads` workers [OMP_NUM_THREADS, or all CPUs]; in each, libraries use one thread."""

    def __init__(self, threads: int = 0) -> None:
        self.count = threads or faiss.omp_get_max_threads()
        self._libraries = threadpoolctl.ThreadpoolController()

    def map(self, work: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Return what `work` makes of each item, in order."""
        with _torch_alone():
            if self.count == 1 or len(items) < 2:
                return [work(item) for item in items]
            with (
                self._libraries.limit(limits=1, user_api="blas"),
                ThreadPoolExecutor(
                    self.count, initializer=faiss.omp_set_num_threads, initargs=(1,)
                ) as pool,
            ):
                return list(pool.map(work, items))


@contextmanager
def one_thread() -> Iterator[None]:
    """Let the libraries of products, numpy's and torch, use one thread. Load torch before."""
    with threadpoolctl.threadpool_limits(1, user_api="blas"), _torch_alone():
        yield


@contextmanager
def _torch_alone() -> Iterator[None]:
    """Let torch use one thread, where it is loaded."""
    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 1
    if torch is None or before == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
