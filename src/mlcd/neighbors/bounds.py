"""Upper bounds of cosine similarities from a few directions: an exact search at part of the cost.

Split the space into the `dims` directions along which the centers have most of their length (the
leading part) and the rest. By Cauchy and Schwarz

    x · c  ≤  lead(x) · lead(c) + |rest(x)| · |rest(c)|,

which is itself one inner product of vectors with dims + 1 entries. Searching with these finds the
centers of greatest bound; once a found center's true similarity exceeds the least bound found, no
other center can be nearer. Rows for which that fails are left to a full search.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

#: Centers from which the directions are taken; more would not change them much.
_SAMPLE = 4096
#: Covers norms that float32 rounds away from 1, squared norms taken in float32.
_SLACK = 1e-5

Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def directions(centers: np.ndarray) -> np.ndarray:
    """Return orthonormal directions float32 [d, d], by falling mean square of the centers.

    A poor choice costs time, never exactness.
    """
    sample = centers[:: -(-len(centers) // _SAMPLE)].astype(np.float64)
    _, vectors = np.linalg.eigh(sample.T @ sample)
    return np.ascontiguousarray(vectors[:, ::-1], np.float32)


class LeadingBounds:
    """Bounds from the first `dims` of `basis` [d, d] over `centers` float32 [K, d].

    `margin` bounds how far rounding may push a true similarity above its computed bound. `make`
    builds what :meth:`search` searches with; without it compare `centers` and :meth:`shortened`.
    """

    def __init__(
        self,
        centers: np.ndarray,
        basis: np.ndarray,
        dims: int,
        make: Callable[[np.ndarray], Search] | None = None,
    ) -> None:
        d = centers.shape[1]
        unit = 2.0**-24
        self._basis = np.ascontiguousarray(basis[:, :dims])
        # Norm of the rounding error of a leading part: each entry errs by at most γ_(d + 1).
        error = 1.02 * np.sqrt(dims) * (d + 1) * unit
        self._slack = 2 * error + error**2 + _SLACK
        self.margin = 2 * error + error**2 + 1.02 * (dims + 1) * unit * (1 + self._slack) + _SLACK
        self.dims = dims
        #: Leading part and length of the rest of each center, float32 [K, dims + 1].
        self.centers = self.shortened(centers)
        self._search = make(self.centers) if make else None

    def search(self, rows: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the `k` greatest bounds of each row float32 [n, k], falling, and their ids."""
        assert self._search is not None, "made without `make`"
        return self._search(self.shortened(rows), k)

    def shortened(self, rows: np.ndarray) -> np.ndarray:
        """Return leading part and length of the rest, float32 [n, dims + 1]; length rounded up."""
        out = np.empty((len(rows), self.dims + 1), np.float32)
        np.matmul(rows, self._basis, out=out[:, :-1])
        square = np.einsum("ij,ij->i", out[:, :-1], out[:, :-1])
        out[:, -1] = np.sqrt(np.maximum(1 - square, 0) + self._slack)
        return out
