"""The nearest center of each row, pass after pass: what the last pass found spares most products.

Every answer is that of :class:`mlcd.neighbors.exact.ExactSearch` with l = 1, to the last tie; what
is remembered between passes moves the work alone. A row goes through up to four stages:

1. Its gap. Remembered is a similarity that no center but the last one exceeds. It grows by no more
   than the distance by which a center has moved. So a row whose last center stays ahead of that
   keeps it (Hamerly 2010). Centers differ in how far they move: of a row whose gap is greater than
   the moves of all but m centers, only these m are compared (after the groups of Ding et al. 2015).
   The same holds for a row whose last center has not moved at all.
2. Its last center a. By the triangle inequality of angles no center c can be as near as a unless
   angle(a, c) ≤ 2 · angle(x, a) (Newling and Fleuret 2016). The nearest centers of each center are
   found once per pass, where a sample of rows says that this pays.
3. Bounds (:mod:`mlcd.neighbors.bounds`, :mod:`mlcd.neighbors.integers`) against the best similarity
   known: that to the last center, or to the center of greatest bound. What the bounds do not rule
   out is scored pair by pair.
4. A full search, for rows of which the bounds leave too much.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

import faiss
import numpy as np

from mlcd.neighbors.bounds import ROWS, Bounds, Products
from mlcd.neighbors.choice import Choice, Spent
from mlcd.neighbors.engine import engine
from mlcd.neighbors.exact import ExactSearch
from mlcd.neighbors.pairs import error_bound, pair_scores
from mlcd.neighbors.tiles import Workers
from mlcd.stages.cluster.pairs import Candidates, least_similarity, tile_bytes

#: Fewer centers or dimensions than this are searched in full: trying would cost more than it saves.
_LEAST_CENTERS, _LEAST_DIMS = 1024, 64
#: Rows on which is tried what pays, and the least that are worth it.
_TRIED, _LEAST_TRIED = 128, 128
#: Rows of a block that are copied at once for a full search.
_COPIED = 4096
#: Nearest centers listed for each center, itself included, and what listing costs: multiply-adds of
#: a matrix product for one of a listed search's dimensions.
_LISTED, _LIST = 33, 2
#: Halvings of the number of centers that a row may be compared to.
_HALVINGS = 6
#: Remembered similarities grow by this share of the work at most.
_MEMORY = 0.15
#: How far below the best similarity pairs are scored at least: well above rounding.
_LEAST_DEPTH = 2e-3
#: Covers float32's rounding of a remembered similarity, once per pass.
_SLACK = 1e-6
#: Passes ahead for which a choice counts, and the share of their rows for which it serves.
_AHEAD, _SERVED = 10, 0.5
#: Above every similarity.
_ANY = 2.0


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
    where that is given. `passes` are expected; `allow_integers`: there is memory for the library of
    integer products.
    """

    def __init__(
        self,
        first: int,
        n: int,
        *,
        device: str = "cpu",
        threads: int = 0,
        make_search: Callable[[np.ndarray], Search] | None = None,
        passes: int = 1,
        allow_integers: bool = False,
    ) -> None:
        self.first = first
        self.last = np.full(n, -1, np.int32)
        self._prune = make_search is None and engine(device) == ("cpu", "float32")
        self._make_search = make_search or partial(
            ExactSearch, device=device, threads=threads, prune=False
        )
        #: Similarities that no center but the last one exceeds.
        self._other = np.full(n if self._prune else 0, _ANY, np.float32)
        self._full: Search | None = None
        self._workers = Workers(threads)
        self._passes, self._passes_left = 0, passes
        self._choice = Choice(allow_integers)
        self._bounds: Bounds | None = None

    def start(self, centers: np.ndarray, shift: np.ndarray | None = None) -> None:
        """Begin a pass over `centers`, float32 [K, d] unit rows. Raises as :class:`ExactSearch`.

        `shift` float [K]: Euclidean distance of each to that of the last pass, 0 only where no bit
        has changed [any].
        """
        # The last pass's goes first: a GPU may have no room for two.
        self._full = None
        self._full = self._make_search(centers)
        self.centers = np.ascontiguousarray(centers, np.float32)
        self.K, self.d = centers.shape
        self._bound = error_bound(self.d)
        self._shift = np.full(self.K, _ANY) if shift is None else shift
        # Those that have moved farthest first.
        self._order = np.argsort(-self._shift, kind="stable")
        self._rank = np.empty(self.K, np.int64)
        self._rank[self._order] = np.arange(self.K)
        moved = int(np.count_nonzero(self._shift))
        counts = {0, moved, *(self.K >> halvings for halvings in range(1, _HALVINGS + 1))}
        self._moved, self._counts = moved, np.array(sorted(counts - {self.K}))
        farthest = self._shift[self._order[self._counts]]
        #: How far at most the centers have moved that come after so many.
        self._farthest = np.where(farthest > 0, farthest * (1 + 1e-6) + 1e-7, 0)
        self._bounds, self._depth = None, 0.0
        self._candidates = Candidates(self.centers)
        self._lists: tuple[np.ndarray, np.ndarray] | None = None
        self._prune = self._prune and self.K >= _LEAST_CENTERS and self.d >= _LEAST_DIMS
        self._untried = self._untried_lists = self._prune
        self._rows_left = len(self.last)
        self._passes += 1
        self._passes_left -= 1

    def nearest(self, start: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the nearest center of each row, int64 [m], and that of the last pass, int32 [m].

        `start` is the number of the first of `rows`, float32 [m, d] unit rows. Nearest is the
        largest :func:`mlcd.neighbors.pairs.dots`, ties by lower id.
        """
        assert self._full is not None, "call start first"
        place = slice(start - self.first, start - self.first + len(rows))
        last = self.last[place].copy()
        ids = self._pruned(rows, place) if self._prune else self._full.nearest(rows, 1)[:, 0]
        self.last[place] = ids
        return ids, last

    def _pruned(self, rows: np.ndarray, place: slice) -> np.ndarray:
        """Return the nearest centers, int64 [m], of the rows whose last ones stand at `place`."""
        ids, other = self.last[place].astype(np.int64), self._other[place]
        known = np.full(len(rows), -1, np.float32)
        had = np.flatnonzero(ids >= 0)
        known[had] = pair_scores(rows, self.centers, had, ids[had])
        count = self._compared(ids, known, other)
        open_ = np.flatnonzero(count)
        if self._untried_lists and len(open_):
            self._untried_lists = False
            self._try_lists(ids, known, open_)
        listed = self._by_lists(rows, ids, known, open_)
        open_ = open_[~listed[open_]]
        if self._untried and len(open_) >= _LEAST_TRIED:
            self._untried = False
            self._try_bounds(rows, known, open_)
        self._rows_left -= len(rows)
        if self._bounds is not None:
            open_ = self._by_bounds(rows, ids, known, other, count, open_)
        for first in range(0, len(open_), _COPIED):
            part = open_[first : first + _COPIED]
            assert isinstance(self._full, ExactSearch), "what prunes has no other search"
            ids[part], other[part] = self._full.nearest_one(rows[part])
        # What is near enough to be listed is not remembered: it is as near as the nearest.
        row = np.flatnonzero(listed)
        other[row] = pair_scores(rows, self.centers, row, ids[row]) + np.float32(self._bound)
        return ids

    # Stage 1

    def _compared(self, ids: np.ndarray, known: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Return how many centers, the first in `_order`, each row is compared to; int64 [m].

        Adds to `other` what the centers after these have moved, in place.
        """
        gap = known - np.float32(self._bound + _SLACK) - other
        # The first count after which all have moved less than the gap.
        place = np.searchsorted(-self._farthest, -gap, side="right")
        count: np.ndarray = np.append(self._counts, self.K)[place]
        count[ids < 0] = self.K
        # No other center that stayed was nearer, to the last tie.
        still = (ids >= 0) & (self._shift[ids] == 0)
        count[still] = np.minimum(count[still], self._moved)
        farthest = np.append(self._farthest, _ANY)[np.searchsorted(self._counts, count)]
        other += np.where(farthest > 0, farthest + _SLACK, 0).astype(np.float32)
        return count

    # Stage 2

    def _by_lists(
        self, rows: np.ndarray, ids: np.ndarray, known: np.ndarray, open_: np.ndarray
    ) -> np.ndarray:
        """Settle those of the rows `open_` whose rivals are all listed, in place.

        Returns which were settled, bool [m].
        """
        settled = np.zeros(len(rows), bool)
        if self._lists is None:
            return settled
        similarity, listed = self._lists
        for first in range(0, len(open_), 4096):
            part = open_[first : first + 4096]
            rivals = similarity[ids[part]] >= least_similarity(known[part], self._bound)[:, None]
            # They fall, so that the last tells whether the list ends too early.
            whole = (ids[part] >= 0) & ~rivals[:, -1]
            settled[part] = whole
            rivals[~whole] = False
            # A row whose only listed rival is its own center keeps it.
            rivals[np.count_nonzero(rivals, axis=1) < 2] = False
            row, place = np.nonzero(rivals)
            self._candidates.settle(rows, ids, part[row], listed[ids[part][row], place])
        return settled

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

    # Stage 3

    def _by_bounds(
        self, rows: np.ndarray, ids: np.ndarray, known: np.ndarray, other: np.ndarray,
        count: np.ndarray, open_: np.ndarray,
    ) -> np.ndarray:  # fmt: skip
        """Settle the rows `open_` by bounds, in place; return those to be searched in full.

        Nearest are their last centers or one of the first `count` in `_order`.
        """
        tiles, candidates, bounds = [], self._candidates, self._bounds
        assert bounds is not None, "bounds are tried only once they are made"
        for compared in np.unique(count[open_]):
            some = open_[count[open_] == compared]
            tiles += [(int(compared), some[i : i + ROWS]) for i in range(0, len(some), ROWS)]

        def work(item: tuple[int, np.ndarray]) -> np.ndarray:
            compared, tile = item
            part, mine = rows[tile], ids[tile]
            left = candidates.left(bounds, part, known[tile], self._order[:compared], self._depth)
            row, center = left.row, left.center
            # A last center that is not compared is a candidate too.
            absent = (mine >= 0) & (self._rank[mine] >= compared)
            some = np.flatnonzero((np.bincount(row, minlength=len(tile)) > 0) & absent)
            if len(some):
                row, center = np.concatenate([row, some]), np.concatenate([center, mine[some]])
                order = np.argsort(row, kind="stable")
                row, center = row[order], center[order]
            second = candidates.settle(part, mine, row, center)
            ids[tile] = mine
            beside = np.maximum(left.least, second)
            other[tile] = beside if compared == self.K else np.maximum(beside, other[tile])
            to_search: np.ndarray = tile[left.full]
            return to_search

        found = self._workers.map(work, tiles)
        return np.concatenate(found) if found else open_

    # What pays

    def _try_lists(self, ids: np.ndarray, known: np.ndarray, open_: np.ndarray) -> None:
        """List the nearest centers of each if that settles rows enough, by a sample of `open_`."""
        sample = self._sample(open_)
        if ids[sample].min() < 0 or not self._choice.work:
            return
        share = self._listed_share(ids[sample], known[sample])
        rows = len(self.last) * len(open_) / len(ids)
        if share * rows * self._choice.work > _LIST * self.K * self.K * self.d:
            self._lists = self._make_lists()

    def _listed_share(self, ids: np.ndarray, known: np.ndarray) -> float:
        """Return the share of rows with the nearest centers `ids` whose rivals would be listed."""
        least = least_similarity(known, self._bound)[:, None]
        rivals = self.centers[ids] @ self.centers.T >= least
        return float((np.count_nonzero(rivals, axis=1) < _LISTED).mean())

    def _try_bounds(self, rows: np.ndarray, known: np.ndarray, open_: np.ndarray) -> None:
        """Choose the bounds of this pass, and how deep they go, by a sample of `open_`."""
        sample = self._sample(open_)
        part, best, every = rows[sample], known[sample], np.arange(self.K)

        def spend(bounds: Bounds) -> Spent:
            left = self._candidates.left(bounds, part, best, every, self._depth)
            return Spent((len(left.row) + left.scored) / len(part), float(left.full.mean()))

        def count() -> float:
            # Rows that will be settled by what is remembered of them need no bounds.
            scores = part @ self.centers.T
            served = _SERVED * (1 - self._listed_share(scores.argmax(axis=1), scores.max(axis=1)))
            later = min(self._passes_left, _AHEAD) * len(self.last) * served
            return (self._rows_left + later) * len(open_) / len(rows)

        bounds = self._choice.choose(self.centers, part, spend, count) or Products(self.centers)
        self._depth = self._best_depth(bounds, spend)
        bounds.reorder(self._order)
        self._bounds = bounds

    def _best_depth(self, bounds: Bounds, spend: Callable[[Bounds], Spent]) -> float:
        """Return how far below the best similarity pairs are scored, for the next pass to know.

        As far as most centers have moved, since they will move less, if that costs little.
        """
        wanted = float(np.quantile(self._shift, 0.75))
        if self._passes_left <= 0 or wanted == _ANY:
            return 0.0
        wanted = max(wanted, _LEAST_DEPTH)
        least = self._choice.work_of(bounds, spend(bounds), self.K, self.d)
        for halvings in range(4):
            self._depth = wanted / 2**halvings
            more = self._choice.work_of(bounds, spend(bounds), self.K, self.d)
            if more <= (1 + _MEMORY) * least:
                return self._depth
        return 0.0

    def _sample(self, ids: np.ndarray) -> np.ndarray:
        """Return some of `ids`, few enough that their bounds to all centers are small."""
        count = min(len(ids), max(32, min(_TRIED, (1 << 24) // self.K)))
        return ids[:: len(ids) // count][:count]


def assignment_bytes(k: int, n: int, d: int, threads: int) -> int:
    """Return the memory of an assignment of `n` rows to `k` centers without bounds, in bytes."""
    needed = 8 * n + (8 * _LISTED + 25) * k
    if k < _LEAST_CENTERS or d < _LEAST_DIMS:
        return needed
    return needed + Workers(threads).count * tile_bytes(k, d)
