"""The nearest centers of each row among those of its nearest groups: a part of the exact work.

K centers lie in about √K groups, each around a direction. A row is compared to the groups, then to
the centers of the `probes` nearest groups. What is found is the exact order of those centers, so
it depends on nothing but the rows, the centers, the groups and `probes`; whether the nearest of
all K centers are among them is another question, which :func:`agreement` answers.
"""

from __future__ import annotations

import math

import numpy as np
import scipy.sparse

from mlcd.neighbors.exact import SPARE, ExactSearch, cpu_search, scan, settle, similarities

#: Centers per group from which the groups' directions are learned, and how often they move.
_SAMPLE, _MOVES = 64, 8
#: Score of a candidate that is not there: below every cosine.
_NONE = -4.0
#: Rows gathered for one product: enough for its speed, few enough that copies stay small.
_GATHERED = 4096


class TwoLevelSearch:
    """Search among `centers` float32 [K, d] by way of `groups` float32 [G, d], all unit rows.

    A center belongs to its nearest group; groups without a center are left out. Of `self.groups`
    groups, the `probes` nearest are searched for a row. They are found on `device`; the products
    within them run on the CPU with `threads` [all CPUs, or OMP_NUM_THREADS].
    """

    def __init__(
        self,
        centers: np.ndarray,
        groups: np.ndarray,
        probes: int,
        *,
        device: str = "cpu",
        threads: int = 0,
    ) -> None:
        self.centers = np.ascontiguousarray(centers, np.float32)
        self.K, self.d = self.centers.shape
        coarse = ExactSearch(groups, device=device, threads=threads)
        group = nearest_one(coarse, self.centers)
        used, counts = np.unique(group, return_counts=True)
        if len(used) < len(groups):
            coarse = ExactSearch(groups[used], device=device, threads=threads)
        self._coarse = coarse
        self.groups = len(used)
        self.probes = min(probes, self.groups)
        # Centers of a group lie together, by rising id.
        self._ids = np.argsort(group, kind="stable")
        self._sorted = self.centers[self._ids]
        self._ends = np.cumsum([0, *counts])
        self._searches = [
            cpu_search(self._sorted[start:stop])
            for start, stop in zip(self._ends[:-1], self._ends[1:], strict=True)
        ]

    def nearest(self, rows: np.ndarray, l: int) -> np.ndarray:
        """Return ids of the `l` nearest centers found for each row, int64 [n, l], nearest first.

        `rows` is float32 [n, d], unit rows. Nearest is the largest
        :func:`mlcd.neighbors.pairs.dots`, ties by lower id. A row whose groups hold fewer than
        `l` centers is compared to all.
        """
        probed = self._coarse.nearest(rows, self.probes)
        scores, ids = self._candidates(rows, probed, l + SPARE)
        open_ = settle(rows, self.centers, scores, ids, l)
        for row in open_:
            ids[row, :l] = self._scan(rows[row : row + 1], probed[row], l)
        few = np.flatnonzero(ids[:, l - 1] < 0)
        for row in few:
            ids[row, :l] = scan(rows[row : row + 1], self.centers, l)
        return ids[:, :l]

    def similarities(self, rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Return the cosine similarity of each row to its centers `ids` [n, l], float64 [n, l]."""
        return similarities(rows, self.centers, ids)

    def _candidates(
        self, rows: np.ndarray, probed: np.ndarray, wanted: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the `wanted` centers of greatest product in the groups `probed` [n, p].

        Scores float32 [n, wanted], falling, and ids int64, padded with −4 and −1.
        """
        n, p = probed.shape
        by_group = np.full((n, p, wanted), _NONE, np.float32)
        places_by_group = np.zeros((n, p, wanted), np.int32)
        pairs = np.argsort(probed.ravel(), kind="stable")
        bounds = np.searchsorted(probed.ravel()[pairs], np.arange(len(self._searches) + 1))
        for group, search in enumerate(self._searches):
            first = self._ends[group]
            k = min(wanted, int(self._ends[group + 1] - first))
            for start in range(bounds[group], bounds[group + 1], _GATHERED):
                pair = pairs[start : min(start + _GATHERED, bounds[group + 1])]
                row, slot = pair // p, pair % p
                by_group[row, slot, :k], found = search(rows[row], k)
                places_by_group[row, slot, :k] = first + found
        scores, places = by_group.reshape(n, -1), places_by_group.reshape(n, -1)
        if p > 1:
            # Few of many: cut before sorting.
            best = np.argpartition(-scores, wanted - 1, axis=1)[:, :wanted]
            scores = np.take_along_axis(scores, best, axis=1)
            places = np.take_along_axis(places, best, axis=1)
            order = np.argsort(-scores, axis=1, kind="stable")
            scores = np.take_along_axis(scores, order, axis=1)
            places = np.take_along_axis(places, order, axis=1)
        ids = self._ids[places]
        ids[scores == _NONE] = -1
        return scores, ids

    def _scan(self, row: np.ndarray, groups: np.ndarray, l: int) -> np.ndarray:
        """Return the `l` nearest of all centers of `groups` for one row [1, d], −1 padded."""
        parts = [self._ids[self._ends[g] : self._ends[g + 1]] for g in groups]
        ids = np.sort(np.concatenate(parts))
        found = np.full(l, -1)
        k = min(l, len(ids))
        found[:k] = ids[scan(row, self.centers[ids], k)[0]]
        return found


def nearest_one(search: ExactSearch, rows: np.ndarray, block: int = 32768) -> np.ndarray:
    """Return the id of the nearest center of each of many rows, int64 [n]."""
    out = np.empty(len(rows), np.int64)
    for start in range(0, len(rows), block):
        part = slice(start, start + block)
        out[part] = search.nearest(rows[part], 1)[:, 0]
    return out


def group_count(k: int) -> int:
    """Return the number of groups for `k` centers: the root, where both levels cost alike."""
    return max(1, math.isqrt(k))


def group_directions(
    centers: np.ndarray, count: int, *, device: str = "cpu", threads: int = 0
) -> np.ndarray:
    """Return at most `count` directions float32 [G, d] around which `centers` [K, d] lie.

    Spherical k-means from evenly spaced centers on an evenly spaced sample; sums are taken in
    float64 in one order, so the result is the same bits whatever the threads and the device.
    """
    sample = centers[:: max(1, len(centers) // (_SAMPLE * count))]
    groups = sample[:: -(-len(sample) // count)].copy()
    for _ in range(_MOVES):
        group = nearest_one(ExactSearch(groups, device=device, threads=threads), sample)
        member = scipy.sparse.csr_array(
            (np.ones(len(sample)), (group, np.arange(len(sample)))),
            shape=(len(groups), len(sample)),
        )
        total = member @ sample.astype(np.float64)
        norms = np.sqrt((total * total).sum(axis=1))
        moved = norms > 1e-6
        groups[moved] = (total[moved] / norms[moved, None]).astype(np.float32)
    return groups


def agreement(found: np.ndarray, exact: np.ndarray) -> float:
    """Return the share of the ids `exact` [n, l] that are among `found` [n, l], row by row."""
    if not exact.size:
        return 1.0
    return float((found[:, :, None] == exact[:, None, :]).any(axis=1).mean())


def search_bytes(k: int, d: int) -> int:
    """Return the memory that a search among centers [k, d] takes besides them, in bytes."""
    # The centers in the order of groups; ids, groups and their order.
    return 4 * k * d + 24 * k
