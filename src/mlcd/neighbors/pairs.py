"""Scores of single pairs of a row and a center, and how far rounding may take them."""

from __future__ import annotations

from typing import Any

import faiss
import numpy as np

#: Pairs scored at once by :func:`dots`: few enough that their float64 products stay in cache.
_PAIRS = 256


def dots(
    left: np.ndarray, right: np.ndarray, left_ids: np.ndarray, right_ids: np.ndarray
) -> np.ndarray:
    """Return the inner products left[left_ids[p]] · right[right_ids[p]], float64 [pairs].

    `left` and `right` are float32 [·, d]. Products of float32 are exact in float64 and numpy sums
    each row alone by its pairwise scheme, so a pair's value depends on nothing but its vectors.
    """
    out = np.empty(len(left_ids))
    for start in range(0, len(left_ids), _PAIRS):
        part = slice(start, start + _PAIRS)
        products = np.multiply(left[left_ids[part]], right[right_ids[part]], dtype=np.float64)
        out[part] = products.sum(axis=1)
    return out


def error_bound(d: int) -> float:
    """Return a bound on the rounding error of a float32 inner product of two unit vectors.

    γ_d = d·u / (1 − d·u) with u = 2⁻²⁴ holds for any order of summation, with or without fused
    multiply-add (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1); 1 % more
    covers norms that float32 rounds away from 1.
    """
    unit = d * 2.0**-24
    return 1.01 * unit / (1 - unit)


def pair_scores(
    rows: np.ndarray, centers: np.ndarray, row: np.ndarray, center: np.ndarray
) -> np.ndarray:
    """Return what :func:`dots` does in float32, within :func:`error_bound`; float32 [pairs]."""
    out = np.empty(len(row), np.float32)
    rows, centers = (np.ascontiguousarray(array, np.float32) for array in (rows, centers))
    row, center = (np.ascontiguousarray(ids, np.int64) for ids in (row, center))
    arrays: list[Any] = [rows, row, centers, center, out]
    # faiss's stubs leave it out.
    pairwise = faiss.pairwise_indexed_inner_product  # type: ignore[attr-defined]
    pairwise(rows.shape[1], len(row), *map(faiss.swig_ptr, arrays))
    return out


def true_pairs(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return row and column of the true entries of `mask` [rows, columns], int64, by rising row."""
    return np.divmod(np.flatnonzero(mask), mask.shape[1])
