"""Bounds that prune the exact search."""

from __future__ import annotations

import numpy as np
import pytest

from helpers.builders import unit
from mlcd.neighbors import exact
from mlcd.neighbors.bounds import LeadingBounds, directions
from mlcd.neighbors.exact import ExactSearch


def planted(
    k: int, n: int = 1500, d: int = 64, noise: float = 3.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return rows around `k` centers, and those centers with some copies among them."""
    rng = np.random.default_rng(5)
    centers = unit(rng.standard_normal((k, d)))
    centers[k // 2 : k // 2 + 20] = centers[:20]
    rows = unit(noise * centers[rng.integers(0, k, n)] + unit(rng.standard_normal((n, d))))
    return rows.astype(np.float32), centers.astype(np.float32)


@pytest.mark.parametrize("noise", [0.5, 3.0])
@pytest.mark.parametrize("l", [1, 4])
def test_pruned_search_equals_the_full_one(l: int, noise: float) -> None:
    rows, centers = planted(1200, noise=noise)
    full = ExactSearch(centers, prune=False).nearest(rows, l)
    pruned = ExactSearch(centers)
    np.testing.assert_array_equal(pruned.nearest(rows, l), full)
    basis = directions(centers)
    for dims in (4, 16, 63):
        leading = LeadingBounds(centers, basis, dims, exact.cpu_search)
        ids, certain = pruned._nearest_by_bounds(leading, rows, l)
        np.testing.assert_array_equal(ids[certain], full[certain])
    if l == 1 and noise == 3.0:
        assert pruned._leading is not None
        assert pruned._nearest_by_bounds(pruned._leading, rows, l)[1].mean() > 0.5


def test_bounds_of_heads_hold() -> None:
    rows, centers = planted(1100)
    true = rows.astype(float) @ centers.T.astype(float)
    for dims in (1, 8, 40):
        leading = LeadingBounds(centers, directions(centers), dims, exact.cpu_search)
        bounds, ids = leading.search(rows, 20)
        assert (bounds + leading.margin >= np.take_along_axis(true, ids, axis=1)).all()
        # What is not returned has a lower bound than all that is.
        others = true.copy()
        np.put_along_axis(others, ids, -2, axis=1)
        assert (others.max(axis=1) <= bounds[:, -1] + leading.margin).all()
