"""The update step: each center moves to the mean direction of its rows, empty ones are given rows.

Spherical k-means after Dhillon and Modha, *Concept decompositions for large sparse text data using
clustering*, Machine Learning 42 (2001).
"""

from __future__ import annotations

import heapq
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np

from mlcd.neighbors.memory import TILE
from mlcd.stages.cluster.group import Group, SingleProcess
from mlcd.stages.cluster.sums import Sums

#: Distance by which the two halves of a split cluster start from its center. The plane between
#: them passes through the center however small it is; this is well above float32's rounding.
_SPLIT = 2.0**-10
#: Below this mean of 1 − cosine a cluster holds copies of one row and cannot be split.
_LEAST_SPREAD = 1e-6


class Moved(NamedTuple):
    """What a pass has come to: `objective`, the mean cosine of a row to its center before the move.

    Of each cluster [K]: the Euclidean `shift` of its center, 0 where no bit has changed; its
    `spread`, which is its `size` minus the norm of its sum: the total of 1 − cosine to its mean
    direction.
    """

    objective: float
    shift: np.ndarray
    spread: np.ndarray
    size: np.ndarray


def move_centers(
    centers: np.ndarray, sums: Sums, group: Group | None = None, *, threads: int = 1
) -> Moved:
    """Replace `centers` float32 [K, d] by the unit mean directions of their rows, in place.

    Each rank of `group` [this process alone] moves its part of them with `threads`. Empty clusters,
    and ones whose rows cancel out, stay where they are.
    """
    group = group or SingleProcess()
    k = len(centers)
    part = group.add_up(sums)
    similarity, shift, spread = np.zeros(k), np.zeros(k), np.zeros(k)

    def move(start: int) -> None:
        tile = slice(start, min(start + TILE, part.stop))
        old = centers[tile].astype(np.float64)
        units = part.total[start - part.start : tile.stop - part.start]
        units = units if isinstance(units, np.ndarray) else units.cpu().numpy()
        total = units * 2.0**-sums.bits
        norms = np.sqrt((total * total).sum(axis=1))
        similarity[tile] = (total * old).sum(axis=1)
        spread[tile] = np.maximum(part.size[tile] - norms, 0)
        moved = norms > 1e-6 * part.size[tile]
        new = old.copy()
        new[moved] = total[moved] / norms[moved, None]
        centers[tile] = new
        # As rounded to float32, so that centers that have settled show a shift of 0.
        shift[tile] = np.sqrt(((centers[tile] - old) ** 2).sum(axis=1))

    starts = range(part.start, part.stop, TILE)
    if threads > 1 and len(starts) > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(move, starts))
    else:
        for start in starts:
            move(start)
    for values in (centers, similarity, shift, spread):
        group.exchange(values)
    return Moved(float(similarity.sum() / part.size.sum()), shift, spread, part.size)


def repair_empty(
    centers: np.ndarray, size: np.ndarray, spread: np.ndarray, seed: list[int], moved: np.ndarray
) -> int:
    """Give each empty cluster half of another one, in place; return how many were empty.

    The cluster with the greatest spread (most lost objective) is split by a random plane through
    its center, then the next, where both halves of a split count with half its spread. Splitting
    a large cluster, as faiss does, keeps classes balanced; moving an empty center to the farthest
    row would make classes of single outliers, which teach an encoder nothing. Copies of one row
    cannot be split; clusters left over then stay empty. `seed` makes the planes. `moved` bool [K]
    is set for the centers that change.
    """
    empty = np.flatnonzero(size == 0)
    if not len(empty):
        return 0
    parents = np.flatnonzero((size > 1) & (spread > _LEAST_SPREAD * size))
    # In the order in which they would be split: more than there are empty ones never are.
    parents = parents[np.argsort(-spread[parents], kind="stable")[: len(empty)]]
    heap = [(-float(spread[j]), int(j)) for j in parents]
    for j in empty:
        if not heap:
            break
        loss, parent = heapq.heappop(heap)
        plane = np.random.default_rng([*seed, int(j)]).standard_normal((centers.shape[1],))
        plane *= _SPLIT / np.sqrt((plane * plane).sum())
        center = centers[parent].astype(np.float64)
        for target, half in ((j, center + plane), (parent, center - plane)):
            centers[target] = half / np.sqrt((half * half).sum())
            moved[target] = True
            heapq.heappush(heap, (loss / 2, int(target)))
    return len(empty)
