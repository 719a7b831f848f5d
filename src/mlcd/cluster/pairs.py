"""Pairs of a row and a centre that may be its nearest."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

#: Row and centre int64 [pairs], bound of their similarity float32 [pairs].
Pairs = tuple[np.ndarray, np.ndarray, np.ndarray]


class Left(NamedTuple):
    """Pairs that bounds did not rule out, by rising row, and rows to search in full.

    `row`, `centre` int64 [pairs]; `full` bool [rows]; `scored`, pairs that were scored on the way.
    """

    row: np.ndarray
    centre: np.ndarray
    full: np.ndarray
    scored: int


def still(found: list[Pairs], least: np.ndarray, full: np.ndarray) -> Pairs:
    """Return the pairs whose bounds reach `least` float32 [rows], of rows that are not `full`."""
    row, centre, bound = (np.concatenate(part) for part in zip(*found, strict=True))
    kept = np.flatnonzero((bound >= least[row]) & ~full[row])
    return row[kept], centre[kept], bound[kept]


def true_pairs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return row and column of the true entries of `mask` [rows, columns], int64, by rising row."""
    return np.divmod(np.flatnonzero(mask), mask.shape[1])
