"""The l nearest centers of each row, exact, with one result on every machine.

A matrix product's last bits depend on its block shapes, threads, BLAS and device, so its order of
two nearly equal centers does too. Here the product only selects: its rounding error has a bound,
and wherever two candidates lie closer than that bound allows to tell apart, both are scored anew
by :func:`dots`, a float64 sum in a fixed order. Equal scores go to the lower id. On a GPU's tensor
cores :mod:`mlcd.neighbors.half` does the same with products of half precision.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import faiss
import numpy as np
import threadpoolctl

from mlcd.neighbors.bounds import LeadingBounds, Search, directions
from mlcd.neighbors.engine import engine, torch_device, torch_dtype

if TYPE_CHECKING:
    from mlcd.neighbors.half import HalfSearch

#: Pairs scored at once by :func:`dots`: few enough that their float64 products stay in cache.
_PAIRS = 256
#: Candidates asked for beyond l. They settle nearly all close calls, and cost faiss nothing.
SPARE = 3
#: Candidates for each of l beyond it in a search by bounds, which are looser than products, and
#: how many at most. Scoring one takes as long as so many products of a matrix.
_CANDIDATES, _MOST_CANDIDATES, _DOT = 7, 120, 80
#: Fewer centers than this are searched in full: trying would cost more than it saves.
_LEAST_CENTERS = 1024
#: Rows on which the shares of the dimensions that leading parts may take are tried, and those
# shares.
_TRIED = 512
_SHARES = (0.0625, 0.125, 0.1875, 0.25, 0.375, 0.5)
#: LeadingBounds must promise less than this part of the full work.
_WORTH = 0.85
#: Rows that faiss multiplies at once: their scores stay in cache until the best are picked.
_QUERIES = 1024
#: Bytes of the scores of one block in :func:`scan`.
_SCAN_BYTES = 32 << 20
#: Candidates of a row that faiss can pick on a GPU.
_MOST_ON_GPU = 2048


def dots(
    left: np.ndarray, right: np.ndarray, left_ids: np.ndarray, right_ids: np.ndarray
) -> np.ndarray:
    """Return the inner products left[left_ids[p]] · right[right_ids[p]], float64 [pairs].

    `left` and `right` are float32 [·, d]. Products of float32 are exact in float64 and numpy sums
    each row alone by its pairwise scheme, so a pair's value depends on nothing but its vectors.
    """
    out = np.empty(len(left_ids))
    for start in range(0, len(left_ids), _PAIRS):
        part = slice(start, start + _PAIRS)
        products = np.multiply(left[left_ids[part]], right[right_ids[part]], dtype=np.float64)
        out[part] = products.sum(axis=1)
    return out


def error_bound(d: int) -> float:
    """Return a bound on the rounding error of a float32 inner product of two unit vectors.

    γ_d = d·u / (1 − d·u) with u = 2⁻²⁴ holds for any order of summation, with or without fused
    multiply-add (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1); 1 % more
    covers norms that float32 rounds away from 1.
    """
    unit = d * 2.0**-24
    return 1.01 * unit / (1 - unit)


class ExactSearch:
    """Exact search among `centers`, float32 [K, d] unit rows.

    `device`: 'cpu', 'cuda', 'auto', or one of these with products (:mod:`mlcd.neighbors.engine`).
    `threads` 0 leaves it to the libraries: all CPUs, or OMP_NUM_THREADS.

    On the CPU, where there are many centers, bounds from few dimensions spare most of the work
    (:mod:`mlcd.neighbors.bounds`); how many dimensions pay is tried on the first rows. `prune`
    False never does. Raises :class:`mlcd.utils.errors.UserError` if `device` is not here.
    """

    def __init__(
        self, centers: np.ndarray, *, device: str = "cpu", threads: int = 0, prune: bool = True
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
        self._leading: LeadingBounds | None = None
        prune = prune and where == ("cpu", "float32")
        self._untried = prune and self.K >= _LEAST_CENTERS and self.d >= 64

    def nearest(self, rows: np.ndarray, l: int) -> np.ndarray:
        """Return the ids of the `l` ≤ K nearest centers of each row, int64 [n, l], nearest first.

        `rows` is float32 [n, d], unit rows. Nearest is the largest :func:`dots`, ties by lower id.
        """
        if self._half is not None:
            return self._half.nearest(rows, l)
        if self._untried and len(rows) >= _TRIED:
            self._untried = False
            self._leading = self._best_leading(rows[:: len(rows) // _TRIED][:_TRIED], l)
        if self._leading is None:
            return self._nearest_in_full(rows, l)
        ids, certain = self._nearest_by_bounds(self._leading, rows, l)
        rest = np.flatnonzero(~certain)
        if len(rest):
            ids[rest] = self._nearest_in_full(rows[rest], l)
        return ids

    def _best_leading(self, rows: np.ndarray, l: int) -> LeadingBounds | None:
        """Return the bounds that promise the least work on `rows`, or None for a full search."""
        basis = directions(self.centers)
        best, least = None, _WORTH
        for share in _SHARES:
            leading = LeadingBounds(self.centers, basis, int(self.d * share), cpu_search)
            _, certain = self._nearest_by_bounds(leading, rows, l)
            # The candidates of a search for one are too few to count.
            scored = _candidates(l) - _candidates(1)
            work = share + 1 - certain.mean() + scored * _DOT / self.K
            if work < least:
                best, least = leading, work
        return best

    def _nearest_by_bounds(
        self, leading: LeadingBounds, rows: np.ndarray, l: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return ids int64 [n, l] as :meth:`nearest`, and which rows they are certain for."""
        k = min(self.K, l + _candidates(l))
        bounds, ids = leading.search(rows, k)
        scores = np.full(bounds.shape, -np.inf)
        scores[:, :l] = self.similarities(rows, ids[:, :l])
        # Candidates whose bound lies below all of the first l need no score.
        row, column = np.nonzero(
            bounds[:, l:] + leading.margin >= scores[:, :l].min(axis=1)[:, None]
        )
        scores[row, l + column] = dots(rows, self.centers, row, ids[row, l + column])
        order = np.lexsort((ids, -scores), axis=1)[:, :l]
        lth = np.take_along_axis(scores, order[:, -1:], axis=1)[:, 0]
        certain = bounds[:, -1] + leading.margin < lth
        return np.take_along_axis(ids, order, axis=1), certain

    def _nearest_in_full(self, rows: np.ndarray, l: int) -> np.ndarray:
        """Do what :meth:`nearest` says from products over all dimensions."""
        wanted = min(self.K, l + SPARE)
        scores, ids = self._search(rows, wanted)
        open_ = settle(rows, self.centers, scores, ids, l, complete=wanted == self.K)
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


def _candidates(l: int) -> int:
    return min(_CANDIDATES * l, _MOST_CANDIDATES)


def search_bytes(k: int, d: int) -> int:
    """Return the memory that a search among centers [k, d] may take besides them, in bytes."""
    # Two shortened copies while the shares are tried.
    return 8 * k * (int(d * max(_SHARES)) + 1) if k >= _LEAST_CENTERS else 0


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
