"""The l nearest centers of each row, exact, with one result on every machine.

A matrix product's last bits depend on its block shapes, threads, BLAS and device, so its order of
two nearly equal centers does too. Here the product only selects: its rounding error has a bound,
and wherever two candidates lie closer than that bound allows to tell apart, both are scored anew
by :func:`mlcd.neighbors.pairs.dots`, a float64 sum in a fixed order. Equal scores go to the lower
id. On a GPU's tensor cores :mod:`mlcd.neighbors.half` does the same with products of half
precision.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

import faiss
import numpy as np
import threadpoolctl

from mlcd.neighbors import pruned
from mlcd.neighbors.bounds import CENTERS, ROWS, Bounds
from mlcd.neighbors.choice import Choice, Spent
from mlcd.neighbors.engine import engine, torch_device, torch_dtype
from mlcd.neighbors.pairs import dots, error_bound
from mlcd.neighbors.tiles import Workers

if TYPE_CHECKING:
    from mlcd.neighbors.half import HalfSearch

Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]

#: Candidates asked for beyond l. They settle nearly all close calls, and cost faiss nothing.
SPARE = 3
#: Fewer centers or dimensions than this are searched in full: trying would cost more than it saves.
_LEAST_CENTERS, _LEAST_DIMS = 1024, 64
#: Rows on which bounds are tried.
_TRIED = 128
#: Rows that faiss multiplies at once.
_QUERIES = 4096
#: Bytes of the scores of one block in :func:`scan`.
_SCAN_BYTES = 32 << 20
#: Candidates of a row that faiss can pick on a GPU.
_MOST_ON_GPU = 2048


class ExactSearch:
    """Exact search among `centers`, float32 [K, d] unit rows.

    `device`: 'cpu', 'cuda', 'auto', or one of these with products (:mod:`mlcd.neighbors.engine`).
    `threads` 0 leaves it to the libraries: all CPUs, or OMP_NUM_THREADS.

    On the CPU, where there are many centers, bounds spare most of the work
    (:mod:`mlcd.neighbors.bounds`, :mod:`mlcd.neighbors.integers`); which ones pay is tried on the
    first rows. `prune` False never does. `rows` tells how many will be searched, and
    `allow_integers` that there is memory for the library of integer products. Raises
    :class:`mlcd.utils.errors.UserError` if `device` is not here.
    """

    def __init__(
        self,
        centers: np.ndarray,
        *,
        device: str = "cpu",
        threads: int = 0,
        prune: bool = True,
        rows: int = 0,
        allow_integers: bool = False,
    ) -> None:
        self.centers = np.ascontiguousarray(centers, np.float32)
        self.K, self.d = self.centers.shape
        where = engine(device)
        if threads:
            # One limit for faiss and for numpy, whose BLAS is another.
            threadpoolctl.threadpool_limits(threads)
        self._half = _half_search(self.centers, *where) if where.half else None
        on_gpu = where.device == "cuda" and not where.half
        self._search = _gpu_search(self.centers) if on_gpu else cpu_search(self.centers)
        self._bounds: Bounds | None = None
        prune = prune and where == ("cpu", "float32")
        self._untried = prune and self.K >= _LEAST_CENTERS and self.d >= _LEAST_DIMS
        self._rows, self._allow_integers = rows, allow_integers
        self._workers = Workers(threads) if self._untried else None

    def nearest(self, rows: np.ndarray, l: int) -> np.ndarray:
        """Return the ids of the `l` ≤ K nearest centers of each row, int64 [n, l], nearest first.

        `rows` is float32 [n, d], unit rows. Nearest is the largest
        :func:`mlcd.neighbors.pairs.dots`, ties by lower id.
        """
        if self._half is not None:
            return self._half.nearest(rows, l)
        if self._untried and len(rows) >= _TRIED:
            self._untried = False
            self._bounds = self._best_bounds(rows[:: len(rows) // _TRIED][:_TRIED], l)
        if self._bounds is None:
            return self._nearest_in_full(rows, l)
        ids, rest = self._nearest_by_bounds(self._bounds, rows, l)
        if len(rest):
            ids[rest] = self._nearest_in_full(rows[rest], l)
        return ids

    def nearest_one(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the nearest center of each row, int64 [n], in a search among all on the CPU.

        And a similarity float32 [n] that no other center exceeds.
        """
        scores, ids = self._search(rows, min(self.K, 1 + SPARE))
        bound = np.float32(error_bound(self.d))
        close = scores[:, :1] - scores[:, 1:2] <= 2 * bound
        other = np.where(close, scores[:, :1], scores[:, 1:2])[:, 0] + bound
        return self._settled(rows, scores, ids, 1)[:, 0], other

    def _best_bounds(self, rows: np.ndarray, l: int) -> Bounds | None:
        """Return the bounds that promise the least work on `rows`, or None for a full search."""

        def spend(bounds: Bounds) -> Spent:
            found = pruned.nearest(bounds, self.centers, rows, l)
            return Spent(found.scored / len(rows), float(found.full.mean()))

        choice = Choice(self._allow_integers)
        return choice.choose(self.centers, rows, spend, lambda: self._rows)

    def _nearest_by_bounds(
        self, bounds: Bounds, rows: np.ndarray, l: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return ids int64 [n, l] as :meth:`nearest`, and the rows that need a full search."""
        assert self._workers is not None, "only a search that may prune has bounds"
        tiles = [rows[start : start + ROWS] for start in range(0, len(rows), ROWS)]
        found = self._workers.map(lambda tile: pruned.nearest(bounds, self.centers, tile, l), tiles)
        full = np.concatenate([part.full for part in found])
        return np.concatenate([part.ids for part in found]), np.flatnonzero(full)

    def _nearest_in_full(self, rows: np.ndarray, l: int) -> np.ndarray:
        """Do what :meth:`nearest` says from products over all dimensions."""
        return self._settled(rows, *self._search(rows, min(self.K, l + SPARE)), l)

    def _settled(self, rows: np.ndarray, scores: np.ndarray, ids: np.ndarray, l: int) -> np.ndarray:
        """Return the exact ids [n, l] of candidates with their `scores` [n, ≥ l]."""
        complete = scores.shape[1] == self.K
        open_ = settle(rows, self.centers, scores, ids, l, complete=complete)
        step = max(1, _SCAN_BYTES // (4 * self.K))
        for start in range(0, len(open_), step):
            part = open_[start : start + step]
            ids[part, :l] = scan(rows[part], self.centers, l)
        return ids[:, :l]

    def similarities(self, rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Return the cosine similarity of each row to its centers `ids` [n, l], float64 [n, l]."""
        if self._half is not None:
            return self._half.similarities(rows, ids)
        return similarities(rows, self.centers, ids)


def similarities(rows: np.ndarray, centers: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return the cosine similarity of each row to its centers `ids` [n, l], float64 [n, l]."""
    n, l = ids.shape
    return dots(rows, centers, np.repeat(np.arange(n), l), ids.ravel()).reshape(n, l)


def settle(
    rows: np.ndarray,
    centers: np.ndarray,
    scores: np.ndarray,
    ids: np.ndarray,
    l: int,
    *,
    complete: bool = False,
) -> np.ndarray:
    """Put the first `l` of the candidates `ids` [n, k] in their exact order, in place.

    `scores` float32 [n, k] are the products that chose them, falling; what was not chosen scores
    no more than the last, or is not there (`complete`). Ids −1 with scores of −4 pad. Returns the
    rows for which the candidates do not tell the `l` nearest: :func:`scan` does.
    """
    bound = 2 * error_bound(centers.shape[1])
    # Between neighbors further apart than twice the bound, the order is certain.
    unsure = np.flatnonzero((scores[:, :-1] - scores[:, 1:] <= bound)[:, :l].any(axis=1))
    # The last candidate bounds all that were not chosen: is the l-th clear of them?
    clear = scores[unsure, l - 1] - scores[unsure, -1] > bound
    if complete:
        clear[:] = True
    settled = unsure[clear]
    if len(settled):
        found, k = ids[settled], ids.shape[1]
        exact = dots(rows, centers, np.repeat(settled, k), found.ravel()).reshape(-1, k)
        exact[found < 0] = -np.inf
        order = np.lexsort((found, -exact), axis=1)
        ids[settled] = np.take_along_axis(found, order, axis=1)
    open_rows: np.ndarray = unsure[~clear]
    return open_rows


def scan(rows: np.ndarray, centers: np.ndarray, l: int) -> np.ndarray:
    """Return the `l` nearest centers of each row, int64 [n, l], scoring all that could be."""
    k = len(centers)
    bound = 2 * error_bound(centers.shape[1])
    scores = rows @ centers.T
    lth = np.partition(scores, k - l, axis=1)[:, k - l]
    row, center = np.nonzero(scores >= (lth - bound)[:, None])
    exact = dots(rows, centers, row, center)
    order = np.lexsort((center, -exact, row))
    firsts = np.searchsorted(row[order], np.arange(len(rows)))
    nearest: np.ndarray = center[order][firsts[:, None] + np.arange(l)]
    return nearest


def search_bytes(k: int, d: int, threads: int = 1) -> int:
    """Return the memory that a search among centers [k, d] may take besides them, in bytes.

    With `threads`, 0 for all CPUs.
    """
    if k < _LEAST_CENTERS:
        return 0
    # Two shortened copies while bounds are tried; scores of a tile, and what they rule out.
    tile = 6 * ROWS * min(k, CENTERS)
    return 8 * k * (d // 2 + 1) + tile * (Workers(threads).count if d >= _LEAST_DIMS else 0)


def cpu_search(centers: np.ndarray) -> Search:
    """Return search(rows, k) → (scores float32 [n, k] falling, ids int64 [n, k])."""
    faiss.cvar.distance_compute_blas_query_bs = _QUERIES
    return lambda rows, k: faiss.knn(rows, centers, k, metric=faiss.METRIC_INNER_PRODUCT)


def _gpu_search(centers: np.ndarray) -> Search:
    """Return the same as :func:`cpu_search`, on this rank's GPU."""
    config = faiss.GpuIndexFlatConfig()
    config.device = int(os.environ.get("LOCAL_RANK", "0")) % faiss.get_num_gpus()
    index = faiss.GpuIndexFlatIP(faiss.StandardGpuResources(), centers.shape[1], config)
    index.add(centers)
    # Only a search among groups of centers, which are few, may ask for so many.
    many = cpu_search(centers)
    return lambda rows, k: index.search(rows, k) if k <= _MOST_ON_GPU else many(rows, k)


def _half_search(centers: np.ndarray, device: str, products: str) -> HalfSearch:
    """Return a search by products of half precision."""
    # torch takes 100 MB, which a search by faiss has better use for.
    from mlcd.neighbors.half import HalfSearch

    return HalfSearch(centers, torch_device(device), torch_dtype(products))
