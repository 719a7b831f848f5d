"""Which bounds pay for given rows and centers, if any: tried on a sample, by the work that is left.

Work is counted in multiply-adds of a float32 matrix product. No result depends on the choice.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from mlcd.neighbors import integers
from mlcd.neighbors.bounds import CENTERS, ROWS, Bounds, LeadingBounds, directions
from mlcd.neighbors.integers import IntegerBounds
from mlcd.neighbors.tiles import one_thread

#: Directions that leading parts may have, at most half of all.
_DIMS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768)
#: Costs: of a score's comparisons; of a pair's dimension, read from anywhere.
_COMPARE, _GATHER = 25, 5
#: A search by bounds must promise less than this part of a full one's work.
_WORTH = 0.85
#: What it costs to load the library of integer products: as long as so many multiply-adds take.
_LOAD = 6e10
#: Leading parts that promise more than so many times the least work are left alone for a while.
_HOPELESS = 1.5
#: Choices that use the same directions.
_SAME_DIRECTIONS = 8


class Spent(NamedTuple):
    """What a search of a sample took: `pairs` scored per row, share of rows left to a full one."""

    pairs: float
    full: float


Spend = Callable[[Bounds], Spent]


class Choice:
    """Chooses bounds, again and again for centers that move; what it chose last is tried first.

    `allow_integers`: there is memory for the library of integer products.
    """

    def __init__(self, allow_integers: bool) -> None:
        self._allowed = allow_integers and integers.possible()
        self._dims: int | None = None
        self._mixed: bool | None = None
        self._cost: float | None = None
        self._basis: np.ndarray | None = None
        self._choices = 0
        self._leading_may_serve = True
        #: Expected work of a row by the last choice.
        self.work = 0.0

    def choose(
        self, centers: np.ndarray, rows: np.ndarray, spend: Spend, count: Callable[[], float]
    ) -> Bounds | None:
        """Return the bounds of least work, or None where a full search is about as good.

        `spend` searches a sample `rows` float32 [≤ ROWS, d] with some bounds; `count` tells on how
        many rows the choice will be used, which decides whether integers are worth loading.
        """
        k, d = centers.shape
        whole = k * (d + _COMPARE)

        def work(bounds: Bounds) -> float:
            return self.work_of(bounds, spend(bounds), k, d)

        best: Bounds | None = None
        least = np.inf
        if self._leading_may_serve or self._choices % _SAME_DIRECTIONS == 0:
            best, least = self._best_leading(centers, work)
        leading = least
        if self._allowed and (
            self._mixed is not None or self._worth(min(least, whole), count, k, d)
        ):
            found = self._integers(centers, rows)
            if found and (more := work(found)) < least:
                best, least = found, more
        self._choices += 1
        self._leading_may_serve = leading < _HOPELESS * min(least, whole)
        self.work = min(least, whole)
        return best if least < _WORTH * whole else None

    def work_of(self, bounds: Bounds, spent: Spent, k: int, d: int) -> float:
        """Return the work of a row where a sample `spent` so much."""
        scored = bounds.work() + k * _COMPARE + spent.pairs * _GATHER * d
        return scored + spent.full * k * (d + _COMPARE)

    def _best_leading(
        self, centers: np.ndarray, work: Callable[[Bounds], float]
    ) -> tuple[Bounds, float]:
        """Go downhill from the last choice: the work falls to one minimum, then rises."""
        if self._basis is None or self._choices % _SAME_DIRECTIONS == 0:
            self._basis = directions(centers)
        basis = self._basis

        def tried(dims: int) -> tuple[Bounds, float]:
            leading = LeadingBounds(centers, basis, dims)
            return leading, work(leading)

        dims = [count for count in _DIMS if 2 * count <= centers.shape[1]]
        place = dims.index(self._dims) if self._dims in dims else len(dims) // 2
        best, least = tried(dims[place])
        for step in (1, -1):
            while 0 <= place + step < len(dims):
                other, more = tried(dims[place + step])
                if more >= least:
                    break
                place, best, least = place + step, other, more
        self._dims = dims[place]
        return best, least

    def _worth(self, least: float, count: Callable[[], float], k: int, d: int) -> bool:
        """Return whether integers promise to save more than it costs to load their library."""
        gain = least - k * (IntegerBounds.usual * d + _COMPARE)
        return gain > 0 and (integers.loaded() or gain * count() > _LOAD)

    def _integers(self, centers: np.ndarray, rows: np.ndarray) -> IntegerBounds | None:
        """Return bounds by integers, or None where their products are slow or not exact."""
        integers.load()
        # A product of torch would take all CPUs, and time on others is not in that of this thread.
        with one_thread():
            return self._measured_integers(centers, rows)

    def _measured_integers(self, centers: np.ndarray, rows: np.ndarray) -> IntegerBounds | None:
        if self._mixed is None:
            self._mixed = integers.mixing_pays(centers, rows)
        largest = integers.usable(*centers.shape)
        if self._mixed is None or not largest:
            self._allowed = False
            return None
        bounds = IntegerBounds(centers, largest, mixed=self._mixed)
        if self._cost is None:
            self._cost = _measured(bounds, centers, rows)
        bounds.cost = self._cost
        return bounds


def _measured(bounds: IntegerBounds, centers: np.ndarray, rows: np.ndarray) -> float:
    """Return the time of a product of integers over that of one of float32, for rows alike."""
    rows = np.resize(rows, (ROWS, rows.shape[1]))
    prepared, some = bounds.prepare(rows), centers[:CENTERS]

    def least(call: Callable[[], object]) -> float:
        times = []
        for _ in range(3):
            start = time.thread_time()
            call()
            times.append(time.thread_time() - start)
        return min(times)

    plain = least(lambda: rows @ some.T)
    return least(lambda: bounds.scores(prepared, 0, len(some))) / max(plain, 1e-9)
