"""The centers for a search by one vector, and the nearest others of each center.

At K of a million, centers of 768 dimensions take 3 GB. So they lie on disk in the order of about √K
groups, and a search reads the nearest groups only: the second level of
:mod:`mlcd.neighbors.two_level`, for one row at a time.
"""

from __future__ import annotations

import numpy as np

from mlcd.commands.explore.store import Column, Files
from mlcd.neighbors.exact import ExactSearch
from mlcd.neighbors.two_level import (
    TwoLevelSearch,
    group_count,
    group_directions,
    nearest_one,
)
from mlcd.utils.logging import progress

#: Other centers that are kept for each.
NEIGHBORS = 15
#: Up to here all pairs are compared; beyond, centers of the nearest groups.
_EXACT_UP_TO = 50_000
_PROBES = 8
#: Groups that a search reads, and centers that it reads at least where there are so many.
_READ_GROUPS, _READ_CENTERS = 24, 16384
_BLOCK = 16384


def write(files: Files, centers: np.ndarray, *, threads: int = 0) -> np.ndarray:
    """Write `centers` float32 [K, d] for :class:`CenterSearch`, and their neighbors.

    Returns the neighbors int32 [K, m], m = min(K − 1, 15), nearest first.
    """
    k = len(centers)
    groups = group_directions(centers, group_count(k), threads=threads)
    group = nearest_one(ExactSearch(groups, threads=threads), centers)
    order = np.argsort(group, kind="stable")
    files.write("group_directions", groups)
    files.write(
        "group_ends", np.concatenate([[0], np.cumsum(np.bincount(group, minlength=len(groups)))])
    )
    files.write("center_ids", order.astype(np.int32))
    sink = files.sink("center_rows", "f2", centers.shape[1:])
    for start in range(0, k, _BLOCK):
        sink.append(centers[order[start : start + _BLOCK]].astype(np.float16))
    sink.close()
    ids, values = neighbors(centers, groups, threads=threads)
    files.write("neighbors", ids)
    files.write("neighbor_similarity", values)
    return ids


def neighbors(
    centers: np.ndarray, groups: np.ndarray, *, threads: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest other centers of each, int32 [K, m], and cosines float32, nearest first.

    `centers` float32 [K, d], unit rows; m = min(K − 1, 15). `groups`: directions of their groups,
    by which many centers are searched.
    """
    k = len(centers)
    m = min(k - 1, NEIGHBORS)
    ids = np.zeros((k, m), np.int32)
    values = np.zeros((k, m), np.float32)
    search: ExactSearch | TwoLevelSearch
    if k <= _EXACT_UP_TO:
        search = ExactSearch(centers, threads=threads)
    else:
        search = TwoLevelSearch(centers, groups, _PROBES, threads=threads)
    blocks = range(0, k if m else 0, _BLOCK)
    for start in progress(blocks, label="neighbors of centers", unit="block"):
        rows = centers[start : start + _BLOCK]
        found = search.nearest(rows, m + 1)
        # The center itself is left out, or the last where copies of it took its place.
        own = found == np.arange(start, start + len(rows))[:, None]
        own[~own.any(axis=1), -1] = True
        others = found[~own].reshape(len(rows), m)
        ids[start : start + len(rows)] = others
        values[start : start + len(rows)] = search.similarities(rows, others)
    return ids, values


class CenterSearch:
    """Finds the centers nearest to one vector."""

    def __init__(self, columns: dict[str, Column]) -> None:
        self._groups = columns["group_directions"].read()
        self._ends = columns["group_ends"].read()
        self._ids, self._rows = columns["center_ids"], columns["center_rows"]
        self.d = self._rows.shape[1]
        ids = self._ids.read()
        self._place_of = np.empty(len(ids), np.int32)
        self._place_of[ids] = np.arange(len(ids), dtype=np.int32)

    def row(self, center: int) -> np.ndarray:
        """Return a center, float32 [d], as float16 has it."""
        place = int(self._place_of[center])
        return np.asarray(self._rows.read(place, place + 1)[0], np.float32)

    def nearest(self, vector: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Return ids int64 [m] and cosines float32 [m] of the centers nearest to `vector`.

        `vector` is a unit row float32 [d]; m ≤ `count`, nearest first, ties by lower id. Centers
        are compared as float16, and those of the nearest groups only where there are many.
        """
        ids, scores, read = [], [], 0
        for rank, group in enumerate(np.argsort(-(self._groups @ vector), kind="stable")):
            if rank >= _READ_GROUPS and read >= _READ_CENTERS:
                break
            start, stop = map(int, self._ends[group : group + 2])
            ids.append(self._ids.read(start, stop).astype(np.int64))
            scores.append(self._rows.read(start, stop).astype(np.float32) @ vector)
            read += stop - start
        found, score = np.concatenate(ids), np.concatenate(scores)
        best = np.lexsort((found, -score))[:count]
        return found[best], score[best]
