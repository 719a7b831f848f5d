"""The l nearest centres of each row, exact, with one result on every machine.

A matrix product's last bits depend on its block shapes, threads, BLAS and device, so its order of
two nearly equal centres does too. Here the product only selects: its rounding error has a bound,
and wherever two candidates lie closer than that bound allows to tell apart, both are scored anew
by :func:`dots`, a float64 sum in a fixed order. Equal scores go to the lower id.
"""

from __future__ import annotations

import os
from collections.abc import Callable

import numpy as np

from mlcd.errors import UserError

#: Pairs scored at once by :func:`dots`: few enough that their float64 products stay in cache.
_PAIRS = 256
#: Candidates asked for beyond l. They settle nearly all close calls, and cost faiss nothing.
_SPARE = 3
#: Bytes of the scores of one block in :meth:`ExactSearch._scan`.
_SCAN_BYTES = 32 << 20


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
    """Exact search among `centres`, float32 [K, d] unit rows, on 'cpu', 'cuda' or 'auto'.

    Raises :class:`UserError` if `device` is 'cuda' and faiss has no GPU.
    """

    def __init__(self, centres: np.ndarray, *, device: str = "cpu", threads: int = 0) -> None:
        self.centres = np.ascontiguousarray(centres, np.float32)
        self.K, self.d = self.centres.shape
        self._bound = error_bound(self.d)
        self._search = _searcher(self.centres, device, threads)

    def nearest(self, rows: np.ndarray, l: int) -> np.ndarray:
        """Return the ids of the `l` ≤ K nearest centres of each row, int64 [n, l], nearest first.

        `rows` is float32 [n, d], unit rows. Nearest is the largest :func:`dots`, ties by lower id.
        """
        wanted = min(self.K, l + _SPARE)
        scores, ids = self._search(rows, wanted)
        # Between neighbours further apart than twice the bound, the order is certain.
        unsure = np.flatnonzero((scores[:, :-1] - scores[:, 1:] <= 2 * self._bound)[:, :l].any(1))
        if len(unsure):
            # The last candidate bounds all that were not returned: is the l-th clear of them?
            clear = scores[unsure, l - 1] - scores[unsure, -1] > 2 * self._bound
            if wanted == self.K:
                clear[:] = True
            settled, open_ = unsure[clear], unsure[~clear]
            if len(settled):
                ids[settled] = self._ordered(rows, settled, ids[settled])
            if len(open_):
                ids[open_, :l] = self._scan(rows, open_, l)
        return ids[:, :l]

    def similarities(self, rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Return the cosine similarity of each row to its centres `ids` [n, l], float64 [n, l]."""
        n, l = ids.shape
        return dots(rows, self.centres, np.repeat(np.arange(n), l), ids.ravel()).reshape(n, l)

    def _ordered(self, rows: np.ndarray, chosen: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Order the candidates `ids` [len(chosen), k] of the `chosen` rows by (score, id)."""
        k = ids.shape[1]
        scores = dots(rows, self.centres, np.repeat(chosen, k), ids.ravel()).reshape(-1, k)
        return np.take_along_axis(ids, np.lexsort((ids, -scores), axis=1), axis=1)

    def _scan(self, rows: np.ndarray, chosen: np.ndarray, l: int) -> np.ndarray:
        """Return the `l` nearest of the `chosen` rows, scoring all that could be among them."""
        out = np.empty((len(chosen), l), np.int64)
        step = max(1, _SCAN_BYTES // (4 * self.K))
        for start in range(0, len(chosen), step):
            part = chosen[start : start + step]
            scores = rows[part] @ self.centres.T
            lth = np.partition(scores, self.K - l, axis=1)[:, self.K - l]
            row, centre = np.nonzero(scores >= (lth - 2 * self._bound)[:, None])
            exact = dots(rows, self.centres, part[row], centre)
            order = np.lexsort((centre, -exact, row))
            firsts = np.searchsorted(row[order], np.arange(len(part)))
            out[start : start + step] = centre[order][firsts[:, None] + np.arange(l)]
        return out


def _searcher(
    centres: np.ndarray, device: str, threads: int
) -> Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]:
    """Return search(rows, k) → (scores float32 [n, k] descending, ids int64 [n, k])."""
    import faiss

    gpus = faiss.get_num_gpus()
    if device == "cuda" and not gpus:
        raise UserError(
            "--device cuda: faiss sees no GPU here; install mlcd[gpu] on a machine that has one, "
            "or use --device cpu"
        )
    faiss.omp_set_num_threads(threads or available_threads())
    if device == "cpu" or not gpus:
        return lambda rows, k: faiss.knn(rows, centres, k, metric=faiss.METRIC_INNER_PRODUCT)
    resources = faiss.StandardGpuResources()
    index = faiss.GpuIndexFlatIP(resources, centres.shape[1])
    index.add(centres)
    return index.search


def available_threads() -> int:
    """Return how many CPUs this process may use."""
    return len(os.sched_getaffinity(0))
