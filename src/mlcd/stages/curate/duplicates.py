"""Pairs of near-duplicates, exact within coarse clusters, in as many passes as memory asks for.

A pair is found if one of the two rows lies in one of the `probes` nearest clusters of the other:
each row is compared to all rows of these. A pass holds the rows of some clusters; its groups are
saved, so that a killed job resumes after its last whole pass, also with another memory limit.

The product of float32 only selects: scores nearer to the threshold than its rounding error may be
are computed anew by :func:`mlcd.neighbors.pairs.dots`. So whether two rows are a pair depends on
nothing but them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from mlcd.data import hdf5
from mlcd.neighbors import memory
from mlcd.neighbors.pairs import dots, error_bound
from mlcd.neighbors.rows import Rows
from mlcd.stages.curate.groups import Groups
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER, progress
from mlcd.utils.units import whole_mebibytes

#: Rows and columns of one product: its scores and what is found in them stay small.
_TILE = 2048
#: Memory of one product, its mask and its pairs.
_TILE_BYTES = 128 << 20
_STATE = "curate_state"


def capacity(limit: int, d: int) -> int:
    """Return how many float32 rows of `d` numbers fit into what is left of `limit` bytes.

    Negative where more is lacking than rows.
    """
    return (memory.bytes_left(limit) - _TILE_BYTES - 12 * _TILE * d) // (4 * d)


class Parts:
    """Saved results of a range of work 0 … `end`, in files `NAME-START-STOP.h5` of a folder."""

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name

    def read(self) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Iterate over stop and two arrays of the parts that follow on one another from 0."""
        spans: dict[int, tuple[int, Path]] = {}
        for path in self._folder.glob(f"{self._name}-*-*.h5"):
            start, stop = map(int, path.stem.rsplit("-", 2)[1:])
            # Of attempts with other memory limits the longest counts.
            spans[start] = max(spans.get(start, (0, path)), (stop, path))
        at = 0
        while at in spans:
            at, path = spans[at]
            try:
                with hdf5.reading(path, _STATE) as file:
                    first, second = hdf5.whole(file, "first"), hdf5.whole(file, "second")
            except UserError as error:
                LOGGER.warning("%s; made again", error)
                return
            yield at, first, second

    def write(self, start: int, stop: int, first: np.ndarray, second: np.ndarray) -> None:
        """Save two arrays as the results of `start` … `stop`."""
        path = self._folder / f"{self._name}-{start}-{stop}.h5"
        hdf5.write(path, _STATE, {"first": first, "second": second}, {})


def find(
    rows: Rows, clusters: np.ndarray, count: int, threshold: float, limit: int, folder: Path
) -> tuple[np.ndarray, np.ndarray]:
    """Return groups of near-duplicates as stars (:mod:`.groups`), int64 [m] each.

    `clusters` int32 [n, probes]: the nearest of `count` clusters of each of the `rows`, nearest
    first; −1 in the rows that are left out already. Works in `folder`, within `limit` bytes. Raises
    :class:`UserError` if a cluster does not fit.
    """
    members = np.bincount(clusters[clusters >= 0], minlength=count)
    room = capacity(limit, rows.d)
    largest = int(members.max(initial=0))
    if largest and room < 2 * largest:
        raise UserError(
            f"--memory-limit: a coarse cluster has {largest} rows of {rows.d} numbers, which need "
            f"{whole_mebibytes(limit + (2 * largest - room) * 4 * rows.d)} in all; raise it (the "
            "resource mem_mb of the rule curate), or raise curate.clusters"
        )
    parts, groups, done = Parts(folder, "clusters"), Groups(), 0
    for done, first, second in parts.read():  # noqa: B007
        groups.add(first, second)
    spans = list(_spans(members, done, room - largest))
    for number, (start, stop) in enumerate(spans, 1):
        found = Groups()
        label = f"duplicates, pass {number} of {len(spans)}"
        _compare(rows, clusters, start, stop, threshold, found, label)
        first, second = found.as_stars()
        parts.write(start, stop, first, second)
        groups.add(first, second)
    return groups.as_stars()


def _spans(members: np.ndarray, first: int, room: int) -> Iterator[tuple[int, int]]:
    """Cut clusters from `first` on into ranges of at most `room` members, one cluster at least."""
    ends = np.cumsum(members)
    while first < len(members):
        before = int(ends[first - 1]) if first else 0
        stop = max(first + 1, int(np.searchsorted(ends, before + room, "right")))
        yield first, stop
        first = stop


def _compare(
    rows: Rows, clusters: np.ndarray, start: int, stop: int, threshold: float, groups: Groups,
    label: str,
) -> None:  # fmt: skip
    """Add the pairs within clusters `start` … `stop` − 1."""
    row, slot = np.nonzero((clusters >= start) & (clusters < stop))
    if not len(row):
        return
    cluster = clusters[row, slot]
    # In a cluster its own rows come first, then those for which it is a further one.
    order = np.lexsort((row, slot > 0, cluster))
    row, slot, cluster = row[order], slot[order], cluster[order]
    held = np.unique(row)
    vectors = rows.take(held)
    place = np.searchsorted(held, row)
    ends = np.searchsorted(cluster, np.arange(start, stop + 1))
    each = itertools.pairwise(ends)
    for first, last in progress(each, total=stop - start, label=label, unit="cluster"):
        own = int((slot[first:last] == 0).sum())
        if own and last - first > 1:
            _within(vectors[place[first:last]], row[first:last], own, threshold, groups)


def _within(
    vectors: np.ndarray, ids: np.ndarray, own: int, threshold: float, groups: Groups
) -> None:
    """Add the pairs of rows float32 [m, d] with the first `own` of them; `ids` int64 [m]."""
    once = _once(vectors, ids, groups)
    if len(once) < len(ids):
        own = int(np.searchsorted(once, own))
        vectors, ids = vectors[once], ids[once]
    # And what rounding to float32 takes from the threshold itself.
    bound = error_bound(vectors.shape[1]) + 1e-6
    for left in range(0, len(ids), _TILE):
        queries = vectors[left : left + _TILE]
        # Of two rows of the cluster the later asks; rows of others ask all of the cluster's.
        for right in range(0, min(own, left + len(queries)), _TILE):
            scores = queries @ vectors[right : min(right + _TILE, own)].T
            query, other = np.nonzero(scores >= threshold - bound)
            score = scores[query, other]
            query, other = query + left, other + right
            near = other < query
            query, other, score = query[near], other[near], score[near]
            unsure = np.flatnonzero(score < threshold + bound)
            exact = dots(vectors, vectors, query[unsure], other[unsure])
            true = np.ones(len(query), bool)
            true[unsure] = exact >= threshold
            groups.add(ids[other[true]], ids[query[true]])


def _once(vectors: np.ndarray, ids: np.ndarray, groups: Groups) -> np.ndarray:
    """Add the pairs of equal rows; return the places of the first of each, rising, int64.

    A million copies of one image would else be compared with each other.
    """
    words = vectors.view(np.uint32)
    # Any odd numbers; a collision is found out below.
    odd = np.arange(1, 2 * words.shape[1], 2, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    hashes = np.empty(len(words), np.uint64)
    for start in range(0, len(words), _TILE):
        part = slice(start, start + _TILE)
        hashes[part] = (words[part] * odd).sum(axis=1, dtype=np.uint64)
    _, first, place = np.unique(hashes, return_index=True, return_inverse=True)
    if len(first) == len(ids):
        return np.arange(len(ids))
    same = np.ones(len(ids), bool)
    for start in range(0, len(ids), _TILE):
        part = slice(start, start + _TILE)
        same[part] = (words[part] == words[first[place[part]]]).all(axis=1)
    same[first] = False
    again = np.flatnonzero(same)
    groups.add(ids[first[place[again]]], ids[again])
    return np.flatnonzero(~same)


def similarities(
    rows: Rows, left: np.ndarray, right: np.ndarray, limit: int, folder: Path
) -> np.ndarray:
    """Return the cosine of rows `left` and `right` (int64 [m]), float32 [m], pair by pair.

    Works in `folder`, within `limit` bytes, as :func:`find`.
    """
    out = np.zeros(len(left), np.float32)
    parts, done = Parts(folder, "similarity"), 0
    for stop, _, values in parts.read():
        out[done:stop] = values
        done = stop
    step = max(1, capacity(limit, rows.d) // 2)
    for start in progress(range(done, len(left), step), label="similarity", unit="pass"):
        part = slice(start, start + step)
        held = np.unique(np.concatenate([left[part], right[part]]))
        vectors = rows.take(held)
        places = (np.searchsorted(held, ids[part]) for ids in (left, right))
        out[part] = dots(vectors, vectors, *places)
        parts.write(start, min(start + step, len(left)), left[part], out[part])
    return out
