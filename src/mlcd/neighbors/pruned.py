"""The l nearest centers of rows by bounds: exact, at part of the cost of all products."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from mlcd.neighbors.bounds import CENTERS, Bounds
from mlcd.neighbors.pairs import dots, error_bound, pair_scores, true_pairs

#: Rows of which more than this share of the centers is left are searched in full.
_MOST_LEFT = 1 / 4
#: Pairs that wait to be scored, beside those of one tile, and those that are kept of all rows.
_MOST_PAIRS = 1 << 18
#: Groups of neighboring centers, of each of which one is among the first candidates.
_GROUPS = 64


class Found(NamedTuple):
    """Ids int64 [n, l]; which rows a full search must answer, bool [n]; pairs that were scored."""

    ids: np.ndarray
    full: np.ndarray
    scored: int


class _Pairs(NamedTuple):
    """Row and center int64 [pairs] and score float32 [pairs], by row and falling score."""

    row: np.ndarray
    center: np.ndarray
    score: np.ndarray


def nearest(bounds: Bounds, centers: np.ndarray, rows: np.ndarray, l: int) -> Found:
    """Return the `l` nearest of `centers` for each of `rows` float32 [n ≤ ROWS, d], unit rows.

    Nearest is the largest :func:`dots`, ties by lower id.
    """
    n, (k, d) = len(rows), centers.shape
    # Two scores further apart than this are in their true order.
    close = np.float32(2 * error_bound(d))
    prepared, full, scored = bounds.prepare(rows), np.zeros(n, bool), 0
    lth = np.full(n, -2, np.float32)
    empty = np.zeros(0, np.int64)
    pairs = _Pairs(empty, empty, np.zeros(0, np.float32))
    starts = range(0, k, CENTERS)
    waiting: list[tuple[np.ndarray, np.ndarray]] = []
    for tile, first in enumerate(starts):
        scores = bounds.scores(prepared, first, min(first + CENTERS, k))
        if first == 0 and scores.shape[1] >= l:
            some = _some_best(scores, l)
            known = pair_scores(rows, centers, np.repeat(np.arange(n), l), some.ravel())
            lth, scored = known.reshape(n, l).min(axis=1), n * l
        open_ = scores >= bounds.least(prepared, lth - close)[:, None]
        if np.count_nonzero(open_) > _MOST_LEFT * n * scores.shape[1]:
            full |= np.count_nonzero(open_, axis=1) > max(_MOST_LEFT * scores.shape[1], 4 * l)
            open_[full] = False
        row, column = true_pairs(open_)
        waiting.append((row, column + first))
        scored += len(row)
        # Sorted whenever the centers seen have doubled: the l-th best rises with their logarithm.
        # And before pairs take more memory than they should.
        many = sum(len(part[0]) for part in waiting) > _MOST_PAIRS
        if many or tile & (tile + 1) == 0 or tile + 1 == len(starts):
            row, center = (np.concatenate(part) for part in zip(*waiting, strict=True))
            waiting = []
            new = _Pairs(row, center, pair_scores(rows, centers, row, center))
            both = _Pairs(*map(np.concatenate, zip(pairs, new, strict=True)))
            pairs, lth = _kept(both, lth, l, close)
            if len(pairs.row) > _MOST_PAIRS:
                # Rows as near to very many centers, such as copies.
                full |= np.bincount(pairs.row, minlength=n) > max(_MOST_PAIRS // n, l)
                pairs = _Pairs(*(values[~full[pairs.row]] for values in pairs))
    pairs = _Pairs(*(values[~full[pairs.row]] for values in pairs))
    ids = np.zeros((n, l), np.int64)
    ids[~full] = _ordered(pairs, rows, centers, l, close)[~full]
    return Found(ids, full, scored)


def _some_best(scores: np.ndarray, l: int) -> np.ndarray:
    """Return `l` columns of great scores for each row of `scores` [n, k], int64 [n, l]."""
    n, k = scores.shape
    width = k // _GROUPS
    if l > _GROUPS // 2 or width < 2:
        return np.argpartition(-scores, l - 1, axis=1)[:, :l]
    # The greatest of each group, and of these the greatest.
    groups = scores[:, : _GROUPS * width].reshape(n, _GROUPS, width)
    column = groups.argmax(axis=2) + width * np.arange(_GROUPS)
    best = np.argpartition(-np.take_along_axis(scores, column, axis=1), l - 1, axis=1)[:, :l]
    return np.take_along_axis(column, best, axis=1)


def _kept(pairs: _Pairs, lth: np.ndarray, l: int, close: np.float32) -> tuple[_Pairs, np.ndarray]:
    """Return the pairs that may be among the `l` best of their row, and the l-th best score."""
    # One integer that rises with the row and falls with the score: sorted faster than two keys.
    bits = pairs.score.view(np.int32)
    order = np.argsort((pairs.row << 32) - np.where(bits < 0, bits ^ 0x7FFFFFFF, bits))
    pairs = _Pairs(*(values[order] for values in pairs))
    starts = np.searchsorted(pairs.row, np.arange(len(lth) + 1))
    enough = np.flatnonzero(np.diff(starts) >= l)
    lth = lth.copy()
    lth[enough] = np.maximum(lth[enough], pairs.score[starts[enough] + l - 1])
    kept = pairs.score >= lth[pairs.row] - close
    return _Pairs(*(values[kept] for values in pairs)), lth


def _ordered(
    pairs: _Pairs, rows: np.ndarray, centers: np.ndarray, l: int, close: np.float32
) -> np.ndarray:
    """Return the first `l` centers of each row's pairs in their exact order, int64 [n, l].

    Rows without pairs have any.
    """
    row, center, score = pairs
    n = len(rows)
    if len(row) < l:
        return np.zeros((n, l), np.int64)
    same = row[1:] == row[:-1]
    unsure = np.zeros(n, bool)
    unsure[row[1:][same & (score[:-1] - score[1:] <= close)]] = True
    # Where the order of two may be that of rounding, the exact scores decide.
    again = np.flatnonzero(unsure[row])
    if len(again):
        exact = dots(rows, centers, row[again], center[again])
        order = np.lexsort((center[again], -exact, row[again]))
        center = center.copy()
        center[again] = center[again][order]
    starts = np.minimum(np.searchsorted(row, np.arange(n)), len(row) - l)
    found: np.ndarray = center[starts[:, None] + np.arange(l)]
    return found
