"""Pairs of a row and a center that may be its nearest."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

#: Row and center int64 [pairs], bound of their similarity float32 [pairs].
Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]

#: Covers norms that float32 rounds away from 1, in similarities.
_SLACK = 2e-6


class Left(NamedTuple):
    """Pairs that bounds did not rule out, by rising row, and rows to search in full.

    `row`, `center` int64 [pairs]; `full` bool [rows]; `scored`, pairs that were scored on the way.
    """

    row: np.ndarray
    center: np.ndarray
    full: np.ndarray
    scored: int


def still(found: list[Pairs], least: np.ndarray, full: np.ndarray) -> Pairs:
    """Return the pairs whose bounds reach `least` float32 [rows], of rows that are not `full`."""
    row, center, bound = (np.concatenate(part) for part in zip(*found, strict=True))
    kept = np.flatnonzero((bound >= least[row]) & ~full[row])
    return row[kept], center[kept], bound[kept]


def true_pairs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return row and column of the true entries of `mask` [rows, columns], int64, by rising row."""
    return np.divmod(np.flatnonzero(mask), mask.shape[1])


def least_similarity(known: np.ndarray, bound: float) -> np.ndarray:
    """Return the least similarity to a row's center that a center as near to the row can have.

    cos 2θ = 2 cos² θ − 1, less what rounding may take from a similarity (`bound`) or add to it;
    for rows more than a right angle away from their center, any.
    """
    sure = known - (bound + _SLACK)
    return np.where(sure > 0, 2 * sure * sure - 1 - (bound + _SLACK), -2).astype(np.float32)
