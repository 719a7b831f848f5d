"""Pairs of a row and a center that may be its nearest: found by bounds, settled by scores."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mlcd.neighbors.bounds import CENTERS, ROWS, Bounds
from mlcd.neighbors.pairs import dots, error_bound, pair_scores, true_pairs

#: Row and center int64 [pairs], score in the bounds' own unit [pairs].
Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]

#: Covers norms that float32 rounds away from 1, in similarities.
_SLACK = 2e-6
#: Pairs that one worker keeps at most: beyond, it scores them to keep the nearest alone.
_MOST_PAIRS = 1 << 18
#: Rows of which more than this share of the centers is left are searched in full.
_MOST_LEFT = 1 / 8


class Left(NamedTuple):
    """Pairs that bounds did not rule out, by rising row, and rows to search in full.

    `row`, `center` int64 [pairs]; `full` bool [rows]; `least` float32 [rows]: no other pair is as
    similar as that; `scored`, pairs that were scored on the way.
    """

    row: np.ndarray
    center: np.ndarray
    full: np.ndarray
    least: np.ndarray
    scored: int


class Candidates:
    """Finds and settles the candidates of rows among `centers`, float32 [K, d] unit rows."""

    def __init__(self, centers: np.ndarray) -> None:
        self._centers = centers
        self._bound = error_bound(centers.shape[1])

    def left(
        self, bounds: Bounds, rows: np.ndarray, known: np.ndarray, order: np.ndarray, depth: float
    ) -> Left:
        """Return the pairs that may be nearest, given similarities `known` to some centers.

        Or within `depth` of the nearest. `rows` are ROWS at most; `order` int64: the ids of the
        centers that come first in `bounds`.
        """
        every, full = np.arange(len(rows)), np.zeros(len(rows), bool)
        prepared = bounds.prepare(rows)
        # By how much a similarity may lie below the best known, both as they were rounded.
        reach = np.float32(depth + 2 * self._bound)
        found: list[Pairs] = []
        scored = len(rows)
        starts = range(0, len(order), CENTERS)
        for first in starts:
            scores = bounds.scores(prepared, first, min(first + CENTERS, len(order)))
            guess = order[scores.argmax(axis=1) + first]
            known = np.maximum(known, pair_scores(rows, self._centers, every, guess))
            open_ = scores >= bounds.least(prepared, known - reach)[:, None]
            most = max(_MOST_LEFT * len(self._centers) / len(starts), 1)
            if np.count_nonzero(open_) > most * len(rows):
                full |= np.count_nonzero(open_, axis=1) > most
                open_[full] = False
            row, column = true_pairs(open_)
            found.append((row, order[column + first], scores[row, column]))
            if sum(len(part[0]) for part in found) > _MOST_PAIRS:
                pairs = still(found, bounds.least(prepared, known - reach), full)
                pairs, known, full, count = self._thinned(rows, pairs, known, full, reach)
                found, scored = [pairs], scored + count
        least = known - np.float32(depth)
        if len(starts) == 1:
            return Left(*found[0][:2], full, least, scored)
        # What an early tile left over may be ruled out by what a later one found.
        row, center, _ = still(found, bounds.least(prepared, known - reach), full)
        rising = np.argsort(row, kind="stable")
        return Left(row[rising], center[rising], full, least, scored)

    def _thinned(
        self, rows: np.ndarray, pairs: Pairs, known: np.ndarray, full: np.ndarray, reach: np.float32
    ) -> tuple[Pairs, np.ndarray, np.ndarray, int]:
        """Return those of `pairs` that may be nearest by their scores, half of _MOST_PAIRS at most.

        And the best similarities known, the rows to search in full, and how many pairs were scored.
        """
        row, center, bound = pairs
        if 2 * len(row) <= _MOST_PAIRS:
            return pairs, known, full, 0
        scores = pair_scores(rows, self._centers, row, center)
        known = known.copy()
        np.maximum.at(known, row, scores)
        kept = scores >= known[row] - reach
        number = np.bincount(row[kept], minlength=len(rows))
        full = full | (number > _MOST_PAIRS // (2 * len(rows)))
        kept &= ~full[row]
        return (row[kept], center[kept], bound[kept]), known, full, len(row)

    def settle(
        self, rows: np.ndarray, ids: np.ndarray, row: np.ndarray, center: np.ndarray
    ) -> np.ndarray:
        """Set `ids` of each row that is among the pairs (by rising row) to its nearest center.

        Returns similarities float32 [rows] that the other centers of its pairs do not exceed.
        """
        other = np.full(len(rows), -2, np.float32)
        if not len(row):
            return other
        scores = pair_scores(rows, self._centers, row, center)
        starts = np.flatnonzero(np.diff(row, prepend=-1))
        best = np.maximum.reduceat(scores, starts)
        counts = np.diff(starts, append=len(row))
        close = np.flatnonzero(scores >= np.repeat(best - np.float32(2 * self._bound), counts))
        near, nearest = row[close], center[close]
        # Where several lie within the rounding error of the best, the exact scores decide.
        several = np.flatnonzero(np.bincount(near, minlength=len(rows))[near] > 1)
        ids[near] = nearest
        if len(several):
            near, nearest = near[several], nearest[several]
            exact = dots(rows, self._centers, near, nearest)
            order = np.lexsort((nearest, -exact, near))
            first = order[np.flatnonzero(np.diff(near[order], prepend=-1))]
            ids[near[first]] = nearest[first]
        scores[center == ids[row]] = -2
        other[row[starts]] = np.maximum.reduceat(scores, starts) + np.float32(self._bound)
        return other


def still(found: list[Pairs], least: np.ndarray, full: np.ndarray) -> Pairs:
    """Return the pairs whose scores reach `least` [rows], of rows that are not `full`."""
    row, center, score = (np.concatenate(part) for part in zip(*found, strict=True))
    kept = np.flatnonzero((score >= least[row]) & ~full[row])
    return row[kept], center[kept], score[kept]


def least_similarity(known: np.ndarray, bound: float) -> np.ndarray:
    """Return the least similarity to a row's center that a center as near to the row can have.

    cos 2θ = 2 cos² θ − 1, less what rounding may take from a similarity (`bound`) or add to it;
    for rows more than a right angle away from their center, any.
    """
    sure = known - (bound + _SLACK)
    return np.where(sure > 0, 2 * sure * sure - 1 - (bound + _SLACK), -2).astype(np.float32)


def tile_bytes(k: int, d: int) -> int:
    """Return the memory of a worker that finds candidates among centers [k, d], in bytes."""
    # Of a tile's rows: copies, scores and what they rule out, pairs and copies as they are cut.
    pairs = min(_MOST_PAIRS + int(ROWS * CENTERS * _MOST_LEFT), int(ROWS * k * _MOST_LEFT))
    return ROWS * (12 * d + 6 * min(k, CENTERS)) + 64 * pairs
