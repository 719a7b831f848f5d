"""The nearest center of each row, pass after pass: what the last pass found spares most products.

Every answer is that of :class:`mlcd.neighbors.exact.ExactSearch` with l = 1, to the last tie; what
is remembered between passes moves the work alone. A row goes through up to three stages:

1. Its last center a. By the triangle inequality of angles no center c can be as near as a unless
   angle(a, c) ≤ 2 · angle(x, a) (Hamerly 2010, Newling and Fleuret 2016). The nearest centers of
   each center are found once per pass, where a sample of rows says that this pays.
2. Bounds from the first directions (:mod:`mlcd.neighbors.bounds`) against the best similarity
   known: that to the last center, or to the center of greatest bound. What the bounds do not rule
   out is scored pair by pair. A row that is no farther from its last center than in the last pass
   is compared to centers that have moved since: none of the others was nearer then.
3. A full search, for rows of which the bounds leave too much.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol

import faiss
import numpy as np
import threadpoolctl

from mlcd.neighbors.bounds import LeadingBounds, directions
from mlcd.neighbors.engine import engine
from mlcd.neighbors.exact import ExactSearch, dots, error_bound
from mlcd.stages.cluster.pairs import Left, Pairs, least_similarity, still, true_pairs

#: Fewer centers or dimensions than this are searched in full: trying would cost more than it saves.
_LEAST_CENTERS, _LEAST_DIMS = 1024, 64
#: Directions that leading parts may have, at most half of all.
_DIMS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768)
#: Rows and centers of one matrix of bounds: it should stay in cache.
_ROWS, _CENTERS = 256, 4096
#: Rows of a block that are copied at once for a full search.
_COPIED = 4096
#: Nearest centers listed for each center, itself included.
_LISTED = 33
#: Costs in multiply-adds of a matrix product: a bound's comparisons; one of a pair's dimensions,
#: read from anywhere; one of a listed search's dimensions.
_COMPARE, _GATHER, _LIST = 25, 5, 2
#: Pairs that one worker keeps at most: beyond, it scores them to keep the nearest alone.
_MOST_PAIRS = 1 << 18
#: Rows of which more than this share of the centers is left are searched in full.
_MOST_LEFT = 1 / 8
#: A pass must promise less than this part of a full search's work.
_WORTH = 0.85
#: Passes that use the same directions.
_SAME_DIRECTIONS = 8


class Search(Protocol):
    """Finds the nearest centers of rows, such as :class:`mlcd.neighbors.exact.ExactSearch`."""

    def nearest(self, rows: np.ndarray, l: int) -> np.ndarray:
        """Return ids int64 [n, l] of the `l` nearest centers of `rows` float32 [n, d]."""
        ...


class Assignment:
    """The nearest center of each of `n` rows numbered from `first`, over many passes.

    Call :meth:`start` with the centers of a pass, then :meth:`nearest` with each of its blocks.
    `last` int32 [n] holds each row's center of the last pass, −1 at first. `device` and `threads`
    as in :class:`ExactSearch`; on a GPU every pass is a full search, and it is one of `make_search`
    where that is given.
    """

    def __init__(
        self,
        first: int,
        n: int,
        *,
        device: str = "cpu",
        threads: int = 0,
        make_search: Callable[[np.ndarray], Search] | None = None,
    ) -> None:
        self.first = first
        self.last = np.full(n, -1, np.int32)
        self._workers = threads or len(os.sched_getaffinity(0))
        self._prune = make_search is None and engine(device) == ("cpu", "float32")
        self._make_search = make_search or partial(
            ExactSearch, device=device, threads=threads, prune=False
        )
        #: Similarities to the last centers, within `_bound`, if `last` says which.
        self._score = np.zeros(n if self._prune else 0, np.float32)
        self._full: Search | None = None
        self._blas = threadpoolctl.ThreadpoolController()
        self._passes = 0
        self._leading: LeadingBounds | None = None
        self._dims: int | None = None
        #: Expected work of a row in stage 2 by the last trial, in multiply-adds.
        self._work: float | None = None

    def start(self, centers: np.ndarray, moved: np.ndarray | None = None) -> None:
        """Begin a pass over `centers`, float32 [K, d] unit rows. Raises as :class:`ExactSearch`.

        `moved`, bool [K]: which of them are not, to the bit, those of the last pass [all].
        """
        # The last pass's goes first: a GPU may have no room for two.
        self._full = None
        self._full = self._make_search(centers)
        self.centers = np.ascontiguousarray(centers, np.float32)
        self.K, self.d = centers.shape
        self._bound = error_bound(self.d)
        self._moved = np.ones(self.K, bool) if moved is None else moved
        # The moved ones first.
        self._order = np.argsort(~self._moved, kind="stable")
        self._leading = None
        self._lists: tuple[np.ndarray, np.ndarray] | None = None
        self._prune = self._prune and self.K >= _LEAST_CENTERS and self.d >= _LEAST_DIMS
        self._untried_bounds = self._untried_lists = self._prune
        if self._prune and self._passes % _SAME_DIRECTIONS == 0:
            self._basis = directions(self.centers)
        self._passes += 1

    def nearest(self, start: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the nearest center of each row, int64 [m], and that of the last pass, int32 [m].

        `start` is the number of the first of `rows`, float32 [m, d] unit rows. Nearest is the
        largest :func:`dots`, ties by lower id.
        """
        place = slice(start - self.first, start - self.first + len(rows))
        last = self.last[place].copy()
        ids = self._pruned(rows, place) if self._prune else self._in_full(rows)
        self.last[place] = ids
        return ids, last

    def _in_full(self, rows: np.ndarray) -> np.ndarray:
        """Return the nearest centers of `rows`, int64 [m], by a search among all."""
        assert self._full is not None, "call start first"
        return self._full.nearest(rows, 1)[:, 0]

    def _pruned(self, rows: np.ndarray, place: slice) -> np.ndarray:
        """Return the nearest centers, int64 [m], of the rows whose last ones stand at `place`."""
        ids = self.last[place].astype(np.int64)
        known = np.full(len(rows), -1, np.float32)
        had = np.flatnonzero(ids >= 0)
        known[had] = self._scores(rows, had, ids[had])
        if self._untried_lists:
            self._untried_lists = False
            self._try_lists(ids, known)
        open_ = self._by_lists(rows, ids, known)
        if self._untried_bounds and len(open_) >= _ROWS:
            self._untried_bounds = False
            self._try_bounds(rows, known, open_)
        if self._leading is not None and len(open_):
            nearer = known[open_] > self._score[place][open_] + np.float32(3 * self._bound)
            moved = int(np.count_nonzero(self._moved))
            calm = (ids[open_] >= 0) & (nearer | ~self._moved[ids[open_]])
            open_ = np.concatenate(
                [
                    self._by_bounds(rows, ids, known, open_[calm], moved),
                    self._by_bounds(rows, ids, known, open_[~calm], self.K),
                ]
            )
        for first in range(0, len(open_), _COPIED):
            part = open_[first : first + _COPIED]
            ids[part] = self._in_full(rows[part])
        changed = np.flatnonzero(ids != self.last[place])
        known[changed] = self._scores(rows, changed, ids[changed])
        self._score[place] = known
        return ids

    def _scores(self, rows: np.ndarray, row: np.ndarray, center: np.ndarray) -> np.ndarray:
        """Return similarities of pairs to float32's precision, within `_bound`; float32 [pairs]."""
        out = np.empty(len(row), np.float32)
        row, center = (np.ascontiguousarray(ids, np.int64) for ids in (row, center))
        arrays = rows, row, self.centers, center, out
        # faiss's stubs leave it out.
        pairwise = faiss.pairwise_indexed_inner_product  # type: ignore[attr-defined]
        pairwise(self.d, len(row), *map(faiss.swig_ptr, arrays))
        return out

    # Stage 1

    def _by_lists(self, rows: np.ndarray, ids: np.ndarray, known: np.ndarray) -> np.ndarray:
        """Settle rows whose rivals are all listed, in place; return the others, int64."""
        if self._lists is None:
            return np.arange(len(rows))
        similarity, listed = self._lists
        open_ = []
        for first in range(0, len(rows), 4096):
            part = slice(first, first + 4096)
            rivals = similarity[ids[part]] >= least_similarity(known[part], self._bound)[:, None]
            # They fall, so that the last tells whether the list ends too early.
            whole = (ids[part] >= 0) & ~rivals[:, -1]
            open_.append(first + np.flatnonzero(~whole))
            rivals[~whole] = False
            # A row whose only listed rival is its own center keeps it.
            rivals[np.count_nonzero(rivals, axis=1) < 2] = False
            row, place = np.nonzero(rivals)
            self._settle(rows, ids, first + row, listed[ids[part][row], place])
        return np.concatenate(open_)

    def _make_lists(self) -> tuple[np.ndarray, np.ndarray]:
        """Return similarities float32 [K, L], falling, and ids of each center's nearest centers."""
        count = min(_LISTED, self.K)
        similarity = np.empty((self.K, count), np.float32)
        listed = np.empty((self.K, count), np.int32)
        for start in range(0, self.K, 4096):
            part = slice(start, start + 4096)
            similarity[part], listed[part] = faiss.knn(
                self.centers[part], self.centers, count, metric=faiss.METRIC_INNER_PRODUCT
            )
        return similarity, listed

    # Stage 2

    def _by_bounds(
        self, rows: np.ndarray, ids: np.ndarray, known: np.ndarray, open_: np.ndarray, count: int
    ) -> np.ndarray:
        """Settle the rows `open_` by bounds, in place; return those to be searched in full.

        Nearest are their last centers or one of the first `count` in `_order`.
        """
        leading = self._leading
        if not len(open_) or not count:
            return np.zeros(0, np.int64)
        assert leading is not None, "bounds are tried only once they are made"
        tiles = [open_[first : first + _ROWS] for first in range(0, len(open_), _ROWS)]

        def work(tile: np.ndarray) -> np.ndarray:
            part, mine = rows[tile], ids[tile]
            row, center, full, _ = self._left(leading, part, known[tile], self._order[:count])
            if count < self.K:
                # A last center that has not moved is a candidate too.
                some = np.flatnonzero(np.bincount(row, minlength=len(tile)))
                some = some[~self._moved[mine[some]]]
                row, center = np.concatenate([row, some]), np.concatenate([center, mine[some]])
                order = np.argsort(row, kind="stable")
                row, center = row[order], center[order]
            self._settle(part, mine, row, center)
            ids[tile] = mine
            left: np.ndarray = tile[full]
            return left

        return np.concatenate(list(self._map(work, tiles)))

    def _map(
        self, work: Callable[[np.ndarray], np.ndarray], tiles: list[np.ndarray]
    ) -> Iterable[np.ndarray]:
        """Do `work` on each tile, on all threads, in each with one thread of the libraries."""
        if self._workers == 1 or len(tiles) == 1:
            return map(work, tiles)
        with (
            self._blas.limit(limits=1, user_api="blas"),
            ThreadPoolExecutor(
                self._workers, initializer=faiss.omp_set_num_threads, initargs=(1,)
            ) as pool,
        ):
            return list(pool.map(work, tiles))

    def _left(
        self, leading: LeadingBounds, rows: np.ndarray, known: np.ndarray, order: np.ndarray
    ) -> Left:
        """Return the pairs that may be nearest, given similarities `known` to some centers.

        `order` int64: the ids of the centers that come first in `leading`.
        """
        short = leading.shortened(rows)
        every = np.arange(len(rows))
        # By how much a bound may lie below the best similarity known, both as they were rounded.
        reach = np.float32(leading.margin + 2 * self._bound)
        full = np.zeros(len(rows), bool)
        found, scored = [], 0
        starts = range(0, len(order), _CENTERS)
        most = _MOST_LEFT * self.K / len(starts)
        for first in starts:
            bounds = short @ leading.centers[first : min(first + _CENTERS, len(order))].T
            guess = order[bounds.argmax(axis=1) + first]
            known = np.maximum(known, self._scores(rows, every, guess))
            open_ = bounds >= (known - reach)[:, None]
            if np.count_nonzero(open_) > most * len(rows):
                full |= np.count_nonzero(open_, axis=1) > most
                open_[full] = False
            row, column = true_pairs(open_)
            found.append((row, order[column + first], bounds[row, column]))
            if sum(len(part[0]) for part in found) > _MOST_PAIRS:
                pairs = still(found, known - reach, full)
                pairs, known, full, count = self._thinned(rows, pairs, known, full)
                found, scored = [pairs], scored + count
        if len(starts) == 1:
            return Left(*found[0][:2], full, scored)
        # What an early tile left over may be ruled out by what a later one found.
        row, center, _ = still(found, known - reach, full)
        rising = np.argsort(row, kind="stable")
        return Left(row[rising], center[rising], full, scored)

    def _thinned(
        self, rows: np.ndarray, pairs: Pairs, known: np.ndarray, full: np.ndarray
    ) -> tuple[Pairs, np.ndarray, np.ndarray, int]:
        """Return those of `pairs` that may be nearest by their scores, half of _MOST_PAIRS at most.

        And the best similarities known, the rows to search in full, and how many pairs were scored.
        """
        row, center, bound = pairs
        if 2 * len(row) <= _MOST_PAIRS:
            return pairs, known, full, 0
        scores = self._scores(rows, row, center)
        known = known.copy()
        np.maximum.at(known, row, scores)
        # Both as they were rounded.
        kept = scores >= known[row] - np.float32(2 * self._bound)
        number = np.bincount(row[kept], minlength=len(rows))
        full = full | (number > _MOST_PAIRS // (2 * len(rows)))
        kept &= ~full[row]
        return (row[kept], center[kept], bound[kept]), known, full, len(row)

    def _settle(
        self, rows: np.ndarray, ids: np.ndarray, row: np.ndarray, center: np.ndarray
    ) -> None:
        """Set `ids` of each row that is among the pairs (by rising row) to its nearest center."""
        if not len(row):
            return
        scores = self._scores(rows, row, center)
        starts = np.flatnonzero(np.diff(row, prepend=-1))
        best = np.maximum.reduceat(scores, starts)
        counts = np.diff(starts, append=len(row))
        close = np.flatnonzero(scores >= np.repeat(best - np.float32(2 * self._bound), counts))
        row, center = row[close], center[close]
        # Where several lie within the rounding error of the best, the exact scores decide.
        several = np.flatnonzero(np.bincount(row, minlength=len(rows))[row] > 1)
        ids[row] = center
        if len(several):
            row, center = row[several], center[several]
            exact = dots(rows, self.centers, row, center)
            order = np.lexsort((center, -exact, row))
            first = order[np.flatnonzero(np.diff(row[order], prepend=-1))]
            ids[row[first]] = center[first]

    # What pays

    def _try_lists(self, ids: np.ndarray, known: np.ndarray) -> None:
        """List the nearest centers of each if that settles rows enough, by a sample of a block."""
        sample = self._sample(np.arange(len(ids)))
        mine, best = ids[sample], known[sample]
        if mine.min() < 0 or self._work is None:
            return
        rivals = self.centers[mine] @ self.centers.T >= least_similarity(best, self._bound)[:, None]
        share = (np.count_nonzero(rivals, axis=1) < _LISTED).mean()
        if share * len(self.last) * self._work > _LIST * self.K * self.K * self.d:
            self._lists = self._make_lists()

    def _try_bounds(self, rows: np.ndarray, known: np.ndarray, open_: np.ndarray) -> None:
        """Choose how many directions the leading part has, by the work on a sample of `open_`."""
        sample = self._sample(open_)
        part, best, every = rows[sample], known[sample], np.arange(self.K)
        whole = self.K * (self.d + _COMPARE)

        def work(dims: int) -> float:
            leading = LeadingBounds(self.centers, self._basis, dims)
            left = self._left(leading, part, best, every)
            pairs = (len(left.row) + left.scored) / len(sample)
            bounds = self.K * (dims + _COMPARE) + dims * self.d
            return float(bounds + pairs * _GATHER * self.d + left.full.mean() * whole)

        # Downhill from the last pass's choice: the work falls to one minimum, then rises.
        dims = [count for count in _DIMS if 2 * count <= self.d]
        place = dims.index(self._dims) if self._dims in dims else len(dims) // 2
        least = work(dims[place])
        for step in (1, -1):
            while 0 <= place + step < len(dims):
                more = work(dims[place + step])
                if more >= least:
                    break
                place, least = place + step, more
        self._dims = dims[place]
        self._work = min(least, whole)
        if least < _WORTH * whole:
            # Made again: of the shortened centers no more than two copies are held at any time.
            self._leading = LeadingBounds(self.centers, self._basis, dims[place])
            self._leading.centers = self._leading.centers[self._order]

    def _sample(self, ids: np.ndarray) -> np.ndarray:
        """Return some of `ids`, few enough that their bounds to all centers are small."""
        count = min(len(ids), max(32, min(_ROWS, (1 << 24) // self.K)))
        return ids[:: len(ids) // count][:count]


def assignment_bytes(k: int, n: int, d: int, threads: int) -> int:
    """Return the memory of an assignment of `n` rows to `k` centers without bounds, in bytes."""
    needed = 8 * n + (8 * _LISTED + 9) * k
    if k < _LEAST_CENTERS or d < _LEAST_DIMS:
        return needed
    # Of a tile's rows: copies, bounds and what they rule out, pairs and copies as they are cut.
    pairs = min(_MOST_PAIRS + int(_ROWS * _CENTERS * _MOST_LEFT), int(_ROWS * k * _MOST_LEFT))
    tile = _ROWS * (8 * d + 6 * min(k, _CENTERS)) + 64 * pairs
    return needed + (threads or len(os.sched_getaffinity(0))) * tile
