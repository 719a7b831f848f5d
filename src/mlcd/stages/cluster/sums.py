"""Sums of the rows of each cluster that do not depend on the order of adding.

Rows are rounded to multiples of 2⁻³² and added as integers. Integer addition is associative, so
the sums are the same bits whatever the block size, the number of threads or of ranks; the rounding
(at most 2⁻³³ a coordinate) is far below that of the float32 rows themselves.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
import scipy.sparse

from mlcd.neighbors.memory import TILE


class Sums(Protocol):
    """Sums of the rows of each cluster: int64 [K, d] in units of 2^-bits, and sizes int64 [K].

    `total` is an array, or a tensor on a device.
    """

    bits: int
    total: Any

    @property
    def size(self) -> np.ndarray: ...


def bits_of(n: int) -> int:
    """Return the bits of a unit's fraction: a coordinate is at most 1, `n` stay below 2^62."""
    return min(32, 62 - n.bit_length())


class ClusterSums:
    """Accumulates `total` int64 [K, d] (in units of 2^-bits) and `size` int64 [K] over `n` rows."""

    def __init__(self, k: int, d: int, n: int) -> None:
        self.bits = bits_of(n)
        self.total = np.zeros((k, d), np.int64)
        self._size = np.zeros(k, np.int64)

    @property
    def size(self) -> np.ndarray:
        """Rows of each cluster, int64 [K]."""
        return self._size

    def add(self, rows: np.ndarray, chosen: np.ndarray, cluster: np.ndarray, sign: int = 1) -> None:
        """Add the `chosen` of `rows` (float32 [n, d], ids int64 [m]) to the clusters `cluster` [m].

        With `sign` −1, take them out again.
        """
        for start in range(0, len(chosen), TILE):
            part = slice(start, start + TILE)
            tile = rows[chosen[part]].astype(np.float64)
            tile *= 2.0**self.bits
            units = np.rint(tile, out=tile).astype(np.int64)
            clusters, group, sizes = np.unique(
                cluster[part], return_inverse=True, return_counts=True
            )
            member = scipy.sparse.csr_array(
                (np.full(len(units), sign), (group, np.arange(len(units)))),
                shape=(len(clusters), len(units)),
            )
            self.total[clusters] += member @ units
            self._size[clusters] += sign * sizes
