"""Bounds that prune the exact search."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from helpers.bounds_cases import KINDS, planted
from mlcd.neighbors import pruned
from mlcd.neighbors.bounds import Bounds, LeadingBounds, Products, directions
from mlcd.neighbors.exact import ExactSearch
from mlcd.neighbors.integers import IntegerBounds, usable

MAKERS: dict[str, Callable[[np.ndarray], Bounds]] = {
    "products": Products,
    "leading 4": lambda centers: LeadingBounds(centers, directions(centers), 4),
    "leading 40": lambda centers: LeadingBounds(centers, directions(centers), 40),
    "integers": lambda centers: IntegerBounds(centers, usable(*centers.shape), mixed=False),
    "half of the range": lambda centers: IntegerBounds(centers, 63, mixed=False),
    "mixed integers": lambda centers: IntegerBounds(centers, 63, mixed=True),
}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("kind", KINDS)
def test_bounds_hold(maker: str, kind: str) -> None:
    rows, centers = KINDS[kind]()
    true = rows.astype(float) @ centers.T.astype(float)
    bounds = MAKERS[maker](centers)
    prepared = bounds.prepare(rows)
    scores = bounds.scores(prepared, 0, len(centers))
    assert scores.shape == true.shape
    for rank in (1, 2, 10, 500):
        similarity = np.sort(true, axis=1)[:, -rank].astype(np.float32) - np.float32(1e-7)
        kept = scores >= bounds.least(prepared, similarity)[:, None]
        assert kept[true > similarity[:, None]].all()
    if maker in ("products", "integers", "mixed integers"):
        # They are close: few others are kept.
        first = true.max(axis=1).astype(np.float32)
        kept = scores >= bounds.least(prepared, first)[:, None]
        near = true >= first[:, None] - 0.25
        assert not (kept & ~near).any()


@pytest.mark.parametrize("maker", MAKERS)
def test_another_order_gives_the_same_scores(maker: str) -> None:
    rows, centers = planted(1100)
    rows = rows[:100]
    bounds = MAKERS[maker](centers)
    before = bounds.scores(bounds.prepare(rows), 0, 1100)
    order = np.random.default_rng(0).permutation(1100)
    bounds.reorder(order)
    after = bounds.scores(bounds.prepare(rows), 100, 300)
    np.testing.assert_allclose(after, before[:, order[100:300]], atol=1e-6)


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("l", [1, 4, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_the_nearest_by_bounds_are_the_exact_ones(
    maker: str, l: int, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Several tiles of centers.
    monkeypatch.setattr(pruned, "CENTERS", 500)
    rows, centers = KINDS[kind]()
    full = ExactSearch(centers, prune=False).nearest(rows, l)
    found = pruned.nearest(MAKERS[maker](centers), centers, rows, l)
    np.testing.assert_array_equal(found.ids[~found.full], full[~found.full])
    if kind == "around centers" and l == 1 and not maker.startswith("leading"):
        assert not found.full.any()


@pytest.mark.parametrize("noise", [0.5, 3.0])
@pytest.mark.parametrize("l", [1, 4])
@pytest.mark.parametrize("threads", [1, 2])
def test_pruned_search_equals_the_full_one(l: int, noise: float, threads: int) -> None:
    rows, centers = planted(1200, n=1500, noise=noise)
    full = ExactSearch(centers, prune=False).nearest(rows, l)
    pruned_search = ExactSearch(centers, threads=threads)
    np.testing.assert_array_equal(pruned_search.nearest(rows, l), full)
    assert (pruned_search._bounds is not None) == (noise == 3.0 and l == 1)
    # With integers, whose library is in this process.
    searched = ExactSearch(centers, threads=threads, rows=10**9, allow_integers=True)
    np.testing.assert_array_equal(searched.nearest(rows, l), full)


def test_nearest_one_tells_what_no_other_center_exceeds() -> None:
    rows, centers = planted(1200)
    ids, other = ExactSearch(centers, prune=False).nearest_one(rows)
    true = rows.astype(float) @ centers.T.astype(float)
    np.testing.assert_array_equal(ids, ExactSearch(centers, prune=False).nearest(rows, 1)[:, 0])
    np.put_along_axis(true, ids[:, None], -2, axis=1)
    assert (true.max(axis=1) <= other).all()
    assert (other - true.max(axis=1)).max() < 1e-4


def test_copies_of_a_center_take_no_more_memory_than_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(pruned, "CENTERS", 100)
    monkeypatch.setattr(pruned, "_MOST_PAIRS", 2000)
    rows, centers = planted(1100)
    centers[::6] = centers[0]
    rows = np.tile(centers[:1], (100, 1))
    assert pruned.nearest(Products(centers), centers, rows, 4).full.all()
