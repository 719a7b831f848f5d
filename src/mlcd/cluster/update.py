"""The update step: each centre moves to the mean direction of its rows, empty ones are given rows.

Spherical k-means after Dhillon and Modha, *Concept decompositions for large sparse text data using
clustering*, Machine Learning 42 (2001).
"""

from __future__ import annotations

import heapq

import numpy as np

from mlcd.cluster.sums import ClusterSums
from mlcd.neighbours.memory import TILE

#: Distance by which the two halves of a split cluster start from its centre. The plane between
#: them passes through the centre however small it is; this is well above float32's rounding.
_SPLIT = 2.0**-10
#: Below this mean of 1 − cosine a cluster holds copies of one row and cannot be split.
_LEAST_SPREAD = 1e-6


def move_centres(centres: np.ndarray, sums: ClusterSums) -> tuple[float, np.ndarray, np.ndarray]:
    """Replace `centres` float32 [K, d] by the unit mean directions of their rows, in place.

    Returns the objective under the old centres (mean cosine similarity of a row to its centre),
    the Euclidean shift of each centre, 0 where no bit has changed, and the spread of each cluster:
    its size minus the norm of its sum, which is the total of 1 − cosine to its mean direction.
    Empty clusters, and ones whose rows cancel out, stay where they are.
    """
    k = len(centres)
    similarity, shift, spread = np.zeros(k), np.zeros(k), np.zeros(k)
    for start in range(0, k, TILE):
        part = slice(start, start + TILE)
        old = centres[part].astype(np.float64)
        total, norms = sums.mean_direction(start, start + TILE)
        similarity[part] = (total * old).sum(axis=1)
        spread[part] = np.maximum(sums.size[part] - norms, 0)
        moved = norms > 1e-6 * sums.size[part]
        new = old.copy()
        new[moved] = total[moved] / norms[moved, None]
        centres[part] = new
        # As rounded to float32, so that centres that have settled show a shift of 0.
        shift[part] = np.sqrt(((centres[part] - old) ** 2).sum(axis=1))
    return float(similarity.sum() / sums.size.sum()), shift, spread


def repair_empty(
    centres: np.ndarray, size: np.ndarray, spread: np.ndarray, seed: list[int], moved: np.ndarray
) -> int:
    """Give each empty cluster half of another one, in place; return how many were empty.

    The cluster with the greatest spread (most lost objective) is split by a random plane through
    its centre, then the next, where both halves of a split count with half its spread. Splitting
    a large cluster, as faiss does, keeps classes balanced; moving an empty centre to the farthest
    row would make classes of single outliers, which teach an encoder nothing. Copies of one row
    cannot be split; clusters left over then stay empty. `seed` makes the planes. `moved` bool [K]
    is set for the centres that change.
    """
    empty = np.flatnonzero(size == 0)
    if not len(empty):
        return 0
    heap = [
        (-float(spread[j]), int(j))
        for j in np.flatnonzero((size > 1) & (spread > _LEAST_SPREAD * size))
    ]
    heapq.heapify(heap)
    for j in empty:
        if not heap:
            break
        loss, parent = heapq.heappop(heap)
        plane = np.random.default_rng([*seed, int(j)]).standard_normal(centres.shape[1])
        plane *= _SPLIT / np.sqrt((plane * plane).sum())
        centre = centres[parent].astype(np.float64)
        for target, half in ((j, centre + plane), (parent, centre - plane)):
            centres[target] = half / np.sqrt((half * half).sum())
            moved[target] = True
            heapq.heappush(heap, (loss / 2, int(target)))
    return len(empty)
