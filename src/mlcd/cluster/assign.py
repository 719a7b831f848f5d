"""The nearest centre of each row, pass after pass: what the last pass found spares most products.

Every answer is that of :class:`mlcd.neighbours.exact.ExactSearch` with l = 1, to the last tie; what
is remembered between passes moves the work alone. A row goes through up to three stages:

1. Its last centre a. By the triangle inequality of angles no centre c can be as near as a unless
   angle(a, c) ≤ 2 · angle(x, a) (Hamerly 2010, Newling and Fleuret 2016). The nearest centres of
   each centre are found once a pass, where a sample of rows says that this pays.
2. Bounds from the first directions (:mod:`mlcd.neighbours.heads`) against the best similarity
   known: that to the last centre, or to the centre of greatest bound. What the bounds do not rule
   out is scored pair by pair. A row that is no farther from its last centre than in the last pass
   is compared to centres that have moved since: none of the others was nearer then.
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

from mlcd.cluster.pairs import Left, Pairs, still, true_pairs
from mlcd.neighbours.exact import ExactSearch, dots, error_bound, uses_gpu
from mlcd.neighbours.heads import Heads, directions

#: Fewer centres or dimensions than this are searched in full: trying would cost more than it saves.
_LEAST_CENTRES, _LEAST_DIMS = 1024, 64
#: Directions that heads may have, at most half of all.
_DIMS = (16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768)
#: Rows and centres of one matrix of bounds: it should stay in cache.
_ROWS, _CENTRES = 256, 4096
#: Rows of a block that are copied at once for a full search.
_COPIED = 4096
#: Nearest centres listed for each centre, itself included.
_LISTED = 33
#: Costs in multiply-adds of a matrix product: a bound's comparisons; one of a pair's dimensions,
#: read from anywhere; one of a listed search's dimensions.
_COMPARE, _GATHER, _LIST = 25, 5, 2
#: Pairs that one worker keeps at most: beyond, it scores them to keep the nearest alone.
_MOST_PAIRS = 1 << 18
#: Rows of which more than this share of the centres is left are searched in full.
_MOST_LEFT = 1 / 8
#: A pass must promise less than this part of a full search's work.
_WORTH = 0.85
#: Passes that use the same directions.
_SAME_DIRECTIONS = 8
#: Covers norms that float32 rounds away from 1, in similarities.
_SLACK = 2e-6


class Search(Protocol):
    """Finds the nearest centres of rows, such as :class:`mlcd.neighbours.exact.ExactSearch`."""

    def nearest(self, rows: np.ndarray, l: int) -> np.ndarray:
        """Return ids int64 [n, l] of the `l` nearest centres of `rows` float32 [n, d]."""
        ...


class Assignment:
    """The nearest centre of each of `n` rows numbered from `first`, over many passes.

    Call :meth:`start` with the centres of a pass, then :meth:`nearest` with each of its blocks.
    `last` int32 [n] holds each row's centre of the last pass, −1 at first. `device` and `threads`
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
        self._prune = make_search is None and not uses_gpu(device)
        self._make_search = make_search or partial(
            ExactSearch, device=device, threads=threads, prune=False
        )
        #: Similarities to the last centres, within `_bound`, if `last` says which.
        self._score = np.zeros(n if self._prune else 0, np.float32)
        self._blas = threadpoolctl.ThreadpoolController()
        self._passes = 0
        self._heads: Heads | None = None
        self._dims: int | None = None
        #: Expected work of a row in stage 2 by the last trial, in multiply-adds.
        self._work: float | None = None

    def start(self, centres: np.ndarray, moved: np.ndarray | None = None) -> None:
        """Begin a pass over `centres`, float32 [K, d] unit rows. Raises as :class:`ExactSearch`.

        `moved`, bool [K]: which of them are not, to the bit, those of the last pass [all].
        """
        self._full = self._make_search(centres)
        self.centres = np.ascontiguousarray(centres, np.float32)
        self.K, self.d = centres.shape
        self._bound = error_bound(self.d)
        self._moved = np.ones(self.K, bool) if moved is None else moved
        # The moved ones first.
        self._order = np.argsort(~self._moved, kind="stable")
        self._heads, self._lists = None, None
        self._prune = self._prune and self.K >= _LEAST_CENTRES and self.d >= _LEAST_DIMS
        self._untried_heads = self._untried_lists = self._prune
        if self._prune and self._passes % _SAME_DIRECTIONS == 0:
            self._basis = directions(self.centres)
        self._passes += 1

    def nearest(self, start: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the nearest centre of each row, int64 [m], and that of the last pass, int32 [m].

        `start` is the number of the first of `rows`, float32 [m, d] unit rows. Nearest is the
        largest :func:`dots`, ties by lower id.
        """
        place = slice(start - self.first, start - self.first + len(rows))
        last = self.last[place].copy()
        ids = self._pruned(rows, place) if self._prune else self._full.nearest(rows, 1)[:, 0]
        self.last[place] = ids
        return ids, last

    def _pruned(self, rows: np.ndarray, place: slice) -> np.ndarray:
        """Return the nearest centres, int64 [m], of the rows whose last ones stand at `place`."""
        ids = self.last[place].astype(np.int64)
        known = np.full(len(rows), -1, np.float32)
        had = np.flatnonzero(ids >= 0)
        known[had] = self._scores(rows, had, ids[had])
        if self._untried_lists:
            self._untried_lists = False
            self._try_lists(ids, known)
        open_ = self._by_lists(rows, ids, known)
        if self._untried_heads and len(open_) >= _ROWS:
            self._untried_heads = False
            self._try_heads(rows, known, open_)
        if self._heads is not None and len(open_):
            nearer = known[open_] > self._score[place][open_] + np.float32(3 * self._bound)
            calm = (ids[open_] >= 0) & (nearer | ~self._moved[ids[open_]])
            open_ = np.concatenate(
                [
                    self._by_heads(rows, ids, known, open_[calm], np.count_nonzero(self._moved)),
                    self._by_heads(rows, ids, known, open_[~calm], self.K),
                ]
            )
        for first in range(0, len(open_), _COPIED):
            part = open_[first : first + _COPIED]
            ids[part] = self._full.nearest(rows[part], 1)[:, 0]
        changed = np.flatnonzero(ids != self.last[place])
        known[changed] = self._scores(rows, changed, ids[changed])
        self._score[place] = known
        return ids

    def _scores(self, rows: np.ndarray, row: np.ndarray, centre: np.ndarray) -> np.ndarray:
        """Return similarities of pairs to float32's precision, within `_bound`; float32 [pairs]."""
        out = np.empty(len(row), np.float32)
        row, centre = (np.ascontiguousarray(ids, np.int64) for ids in (row, centre))
        arrays = rows, row, self.centres, centre, out
        faiss.pairwise_indexed_inner_product(self.d, len(row), *map(faiss.swig_ptr, arrays))
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
            rivals = similarity[ids[part]] >= _least(known[part], self._bound)[:, None]
            # They fall, so that the last tells whether the list ends too early.
            whole = (ids[part] >= 0) & ~rivals[:, -1]
            open_.append(first + np.flatnonzero(~whole))
            rivals[~whole] = False
            # A row whose only listed rival is its own centre keeps it.
            rivals[np.count_nonzero(rivals, axis=1) < 2] = False
            row, place = np.nonzero(rivals)
            self._settle(rows, ids, first + row, listed[ids[part][row], place])
        return np.concatenate(open_)

    def _make_lists(self) -> tuple[np.ndarray, np.ndarray]:
        """Return similarities float32 [K, L], falling, and ids of each centre's nearest centres."""
        count = min(_LISTED, self.K)
        similarity = np.empty((self.K, count), np.float32)
        listed = np.empty((self.K, count), np.int32)
        for start in range(0, self.K, 4096):
            part = slice(start, start + 4096)
            similarity[part], listed[part] = faiss.knn(
                self.centres[part], self.centres, count, metric=faiss.METRIC_INNER_PRODUCT
            )
        return similarity, listed

    # Stage 2

    def _by_heads(
        self, rows: np.ndarray, ids: np.ndarray, known: np.ndarray, open_: np.ndarray, count: int
    ) -> np.ndarray:
        """Settle the rows `open_` by bounds, in place; return those to be searched in full.

        Nearest are their last centres or one of the first `count` in `_order`.
        """
        if not len(open_) or not count:
            return np.zeros(0, np.int64)
        tiles = [open_[first : first + _ROWS] for first in range(0, len(open_), _ROWS)]

        def work(tile: np.ndarray) -> np.ndarray:
            part, mine = rows[tile], ids[tile]
            row, centre, full, _ = self._left(self._heads, part, known[tile], self._order[:count])
            if count < self.K:
                # A last centre that has not moved is a candidate too.
                some = np.flatnonzero(np.bincount(row, minlength=len(tile)))
                some = some[~self._moved[mine[some]]]
                row, centre = np.concatenate([row, some]), np.concatenate([centre, mine[some]])
                order = np.argsort(row, kind="stable")
                row, centre = row[order], centre[order]
            self._settle(part, mine, row, centre)
            ids[tile] = mine
            return tile[full]

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

    def _left(self, heads: Heads, rows: np.ndarray, known: np.ndarray, order: np.ndarray) -> Left:
        """Return the pairs that may be nearest, given similarities `known` to some centres.

        `order` int64: the ids of the centres that come first in `heads`.
        """
        short = heads.shortened(rows)
        every = np.arange(len(rows))
        # By how much a bound may lie below the best similarity known, both as they were rounded.
        reach = np.float32(heads.margin + 2 * self._bound)
        full = np.zeros(len(rows), bool)
        found, scored = [], 0
        starts = range(0, len(order), _CENTRES)
        most = _MOST_LEFT * self.K / len(starts)
        for first in starts:
            bounds = short @ heads.centres[first : min(first + _CENTRES, len(order))].T
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
        row, centre, _ = still(found, known - reach, full)
        rising = np.argsort(row, kind="stable")
        return Left(row[rising], centre[rising], full, scored)

    def _thinned(
        self, rows: np.ndarray, pairs: Pairs, known: np.ndarray, full: np.ndarray
    ) -> tuple[Pairs, np.ndarray, np.ndarray, int]:
        """Return those of `pairs` that may be nearest by their scores, half of _MOST_PAIRS at most.

        And the best similarities known, the rows to search in full, and how many pairs were scored.
        """
        row, centre, bound = pairs
        if 2 * len(row) <= _MOST_PAIRS:
            return pairs, known, full, 0
        scores = self._scores(rows, row, centre)
        known = known.copy()
        np.maximum.at(known, row, scores)
        # Both as they were rounded.
        kept = scores >= known[row] - np.float32(2 * self._bound)
        number = np.bincount(row[kept], minlength=len(rows))
        full = full | (number > _MOST_PAIRS // (2 * len(rows)))
        kept &= ~full[row]
        return (row[kept], centre[kept], bound[kept]), known, full, len(row)

    def _settle(
        self, rows: np.ndarray, ids: np.ndarray, row: np.ndarray, centre: np.ndarray
    ) -> None:
        """Set `ids` of each row that is among the pairs (by rising row) to its nearest centre."""
        if not len(row):
            return
        scores = self._scores(rows, row, centre)
        starts = np.flatnonzero(np.diff(row, prepend=-1))
        best = np.maximum.reduceat(scores, starts)
        counts = np.diff(starts, append=len(row))
        close = np.flatnonzero(scores >= np.repeat(best - np.float32(2 * self._bound), counts))
        row, centre = row[close], centre[close]
        # Where several lie within the rounding error of the best, the exact scores decide.
        several = np.flatnonzero(np.bincount(row, minlength=len(rows))[row] > 1)
        ids[row] = centre
        if len(several):
            row, centre = row[several], centre[several]
            exact = dots(rows, self.centres, row, centre)
            order = np.lexsort((centre, -exact, row))
            first = order[np.flatnonzero(np.diff(row[order], prepend=-1))]
            ids[row[first]] = centre[first]

    # What pays

    def _try_lists(self, ids: np.ndarray, known: np.ndarray) -> None:
        """List the nearest centres of each if that settles rows enough, by a sample of a block."""
        sample = self._sample(np.arange(len(ids)))
        mine, best = ids[sample], known[sample]
        if mine.min() < 0 or self._work is None:
            return
        rivals = self.centres[mine] @ self.centres.T >= _least(best, self._bound)[:, None]
        share = (np.count_nonzero(rivals, axis=1) < _LISTED).mean()
        if share * len(self.last) * self._work > _LIST * self.K * self.K * self.d:
            self._lists = self._make_lists()

    def _try_heads(self, rows: np.ndarray, known: np.ndarray, open_: np.ndarray) -> None:
        """Choose how many directions the heads have by the work on a sample of the rows `open_`."""
        sample = self._sample(open_)
        part, best, every = rows[sample], known[sample], np.arange(self.K)
        whole = self.K * (self.d + _COMPARE)

        def work(dims: int) -> float:
            heads = Heads(self.centres, self._basis, dims)
            left = self._left(heads, part, best, every)
            pairs = (len(left.row) + left.scored) / len(sample)
            bounds = self.K * (dims + _COMPARE) + dims * self.d
            return bounds + pairs * _GATHER * self.d + left.full.mean() * whole

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
            # Made again: of the shortened centres no more than two copies are held at any time.
            self._heads = Heads(self.centres, self._basis, dims[place])
            self._heads.centres = self._heads.centres[self._order]

    def _sample(self, ids: np.ndarray) -> np.ndarray:
        """Return some of `ids`, few enough that their bounds to all centres are small."""
        count = min(len(ids), max(32, min(_ROWS, (1 << 24) // self.K)))
        return ids[:: len(ids) // count][:count]


def assignment_bytes(k: int, n: int, d: int, threads: int) -> int:
    """Return the memory of an assignment of `n` rows to `k` centres besides its heads, in bytes."""
    needed = 8 * n + (8 * _LISTED + 9) * k
    if k < _LEAST_CENTRES or d < _LEAST_DIMS:
        return needed
    # Of a tile's rows: copies, bounds and what they rule out, pairs and copies as they are cut.
    pairs = min(_MOST_PAIRS + int(_ROWS * _CENTRES * _MOST_LEFT), int(_ROWS * k * _MOST_LEFT))
    tile = _ROWS * (8 * d + 6 * min(k, _CENTRES)) + 64 * pairs
    return needed + (threads or len(os.sched_getaffinity(0))) * tile


def _least(known: np.ndarray, bound: float) -> np.ndarray:
    """Return the least similarity to a row's centre that a centre as near to the row can have.

    cos 2θ = 2 cos² θ − 1, less what rounding may take from a similarity (`bound`) or add to it;
    for rows more than a right angle away from their centre, any.
    """
    sure = known - (bound + _SLACK)
    return np.where(sure > 0, 2 * sure * sure - 1 - (bound + _SLACK), -2).astype(np.float32)
