"""Upper bounds of cosine similarities from a few directions: an exact search at part of the cost.

Split the space into the `dims` directions along which the centers have most of their length (the
leading part) and the rest. By Cauchy and Schwarz

    x · c  ≤  lead(x) · lead(c) + |rest(x)| · |rest(c)|,

which is itself one inner product of vectors with dims + 1 entries. Centers whose bound lies below
the best similarity known are not nearer. :mod:`mlcd.neighbors.integers` has other bounds, with the
same methods.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from mlcd.neighbors.pairs import error_bound

#: Centers from which the directions are taken; more would not change them much.
_SAMPLE = 4096
#: Covers norms that float32 rounds away from 1, squared norms taken in float32.
_SLACK = 1e-5
#: Rows and centers of one matrix of scores.
ROWS, CENTERS = 512, 4096


class Bounds(Protocol):
    """Scores that bound similarities of rows to K centers from above."""

    def work(self) -> float:
        """Return the cost of the scores of one row, in multiply-adds of float32 products."""

    def reorder(self, order: np.ndarray) -> None:
        """Bring the centers into another order: `order` int64 [K]."""

    def prepare(self, rows: np.ndarray) -> Any:
        """Return what the other methods take of at most ROWS unit rows, float32 [n, d]."""

    def scores(self, prepared: Any, first: int, stop: int) -> np.ndarray:
        """Return the scores [n, stop − first] of prepared rows and centers first … stop − 1."""

    def least(self, prepared: Any, similarity: np.ndarray) -> np.ndarray:
        """Return the least scores [n] that centers as similar as `similarity` float32 [n] have."""


def directions(centers: np.ndarray) -> np.ndarray:
    """Return orthonormal directions float32 [d, d], by falling mean square of the centers.

    A poor choice costs time, never exactness.
    """
    sample = centers[:: -(-len(centers) // _SAMPLE)].astype(np.float64)
    _, vectors = np.linalg.eigh(sample.T @ sample)
    return np.ascontiguousarray(vectors[:, ::-1], np.float32)


class LeadingBounds:
    """Bounds from the first `dims` of `basis` [d, d] over `centers` float32 [K, d].

    `margin` bounds how far rounding may push a true similarity above its computed bound.
    """

    def __init__(self, centers: np.ndarray, basis: np.ndarray, dims: int) -> None:
        self.K, self.d = centers.shape
        unit = 2.0**-24
        self._basis = np.ascontiguousarray(basis[:, :dims])
        # Norm of the rounding error of a leading part: each entry errs by at most γ_(d + 1).
        error = 1.02 * np.sqrt(dims) * (self.d + 1) * unit
        self._slack = 2 * error + error**2 + _SLACK
        self.margin = 2 * error + error**2 + 1.02 * (dims + 1) * unit * (1 + self._slack) + _SLACK
        self.dims = dims
        #: Leading part and length of the rest of each center, float32 [K, dims + 1].
        self.centers = self.prepare(centers)

    def work(self) -> float:
        """Do what :class:`Bounds` says."""
        return float(self.K * self.dims + self.dims * self.d)

    def reorder(self, order: np.ndarray) -> None:
        """Do what :class:`Bounds` says."""
        self.centers = self.centers[order]

    def prepare(self, rows: np.ndarray) -> np.ndarray:
        """Return leading part and length of the rest, float32 [n, dims + 1]; length rounded up."""
        out = np.empty((len(rows), self.dims + 1), np.float32)
        np.matmul(rows, self._basis, out=out[:, :-1])
        square = np.einsum("ij,ij->i", out[:, :-1], out[:, :-1])
        out[:, -1] = np.sqrt(np.maximum(1 - square, 0) + self._slack)
        return out

    def scores(self, prepared: np.ndarray, first: int, stop: int) -> np.ndarray:
        """Return the bounds float32 [n, stop − first] before rounding is allowed for."""
        bounds: np.ndarray = prepared @ self.centers[first:stop].T
        return bounds

    def least(self, prepared: np.ndarray, similarity: np.ndarray) -> np.ndarray:
        """Do what :class:`Bounds` says; float32 [n]."""
        return similarity - np.float32(self.margin)


class Products:
    """The similarities to `centers` float32 [K, d] themselves, as they are rounded."""

    def __init__(self, centers: np.ndarray) -> None:
        self.K, self.d = centers.shape
        self._centers, self._margin = centers, np.float32(error_bound(self.d))

    def work(self) -> float:
        """Do what :class:`Bounds` says."""
        return float(self.K * self.d)

    def reorder(self, order: np.ndarray) -> None:
        """Do what :class:`Bounds` says."""
        if (order[1:] < order[:-1]).any():
            self._centers = self._centers[order]

    def prepare(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows as they are."""
        return rows

    def scores(self, prepared: np.ndarray, first: int, stop: int) -> np.ndarray:
        """Return similarities float32 [n, stop − first]."""
        scores: np.ndarray = prepared @ self._centers[first:stop].T
        return scores

    def least(self, prepared: np.ndarray, similarity: np.ndarray) -> np.ndarray:
        """Do what :class:`Bounds` says; float32 [n]."""
        return similarity - self._margin
