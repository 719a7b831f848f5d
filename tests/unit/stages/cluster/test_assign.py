"""Assignment over many passes, held to a full search of each pass."""

from __future__ import annotations

import weakref

import numpy as np
import pytest

from helpers import builders
from mlcd.neighbors import choice
from mlcd.neighbors.bounds import LeadingBounds, Products
from mlcd.neighbors.exact import ExactSearch
from mlcd.neighbors.integers import IntegerBounds
from mlcd.stages.cluster import pairs
from mlcd.stages.cluster.assign import Assignment

K, D, N = 1100, 96, 6000


def moving_centers(rows: np.ndarray, passes: int) -> list[np.ndarray]:
    """Return centers [K, d] of several Lloyd iterations from rows with copies among them."""
    rng = np.random.default_rng(1)
    centers = rows[rng.choice(len(rows), K, replace=False)].copy()
    centers[5:8] = centers[4]
    found = []
    for _ in range(passes):
        found.append(centers)
        nearest = (rows @ centers.T).argmax(axis=1)
        sums = np.zeros((K, D))
        np.add.at(sums, nearest, rows)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        centers = np.where(norms > 0, sums / np.maximum(norms, 1e-9), centers).astype(np.float32)
        # Two jump far away, one onto another.
        centers[:2] = rows[rng.choice(len(rows), 2)]
        centers[2] = centers[3]
    return found


def distances(centers: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Return how far each center has moved, float64 [K]."""
    return np.linalg.norm(centers.astype(float) - before, axis=1)


def check_remembered(assignment: Assignment, rows: np.ndarray, centers: np.ndarray) -> None:
    """Check that no center but the last one is more similar than is remembered."""
    true = rows.astype(float) @ centers.T.astype(float)
    np.put_along_axis(true, assignment.last[:, None].astype(int), -2, axis=1)
    assert (true.max(axis=1) <= assignment._other).all()


def check(
    rows: np.ndarray, passes: list[np.ndarray], threads: int = 1, allow_integers: bool = False
) -> list[tuple[bool, type]]:
    """Check every pass in blocks of uneven length against a full search."""
    assignment = Assignment(
        1000, len(rows), threads=threads, passes=len(passes), allow_integers=allow_integers
    )
    stages, before, expected = [], None, np.full(len(rows), -1)
    for centers in passes:
        assignment.start(centers, None if before is None else distances(centers, before))
        last, before = expected, centers
        expected = ExactSearch(centers, threads=1, prune=False).nearest(rows, 1)[:, 0]
        for first, end in ((0, 4000), (4000, 4001), (4001, len(rows))):
            found, was = assignment.nearest(1000 + first, rows[first:end])
            np.testing.assert_array_equal(found, expected[first:end])
            np.testing.assert_array_equal(was, last[first:end])
        stages.append((assignment._lists is not None, type(assignment._bounds)))
        check_remembered(assignment, rows, centers)
        np.testing.assert_array_equal(assignment.last, expected)
    return stages


def test_two_searches_never_live_at_once() -> None:
    alive: list[weakref.ref] = []

    def make(centers: np.ndarray) -> ExactSearch:
        assert all(search() is None for search in alive)
        search = ExactSearch(centers, threads=1, prune=False)
        alive.append(weakref.ref(search))
        return search

    rows = builders.unit_vectors(50, 8)
    assignment = Assignment(0, 50, threads=1, make_search=make)
    for centers in (rows[:5], rows[5:10], rows[10:15]):
        assignment.start(centers)
        assignment.nearest(0, rows)
    assert len(alive) == 3


def falling_rows() -> np.ndarray:
    """Return rows whose length falls along the directions, as that of real embeddings does."""
    rows = np.random.default_rng(0).standard_normal((N, D)) * np.exp(-np.arange(D) / 8)
    rows[100:105] = rows[3]
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_groups_apart_are_settled_by_lists() -> None:
    rows = builders.unit_vectors(N, D, groups=900)
    rows[3000:3010] = rows[17]
    stages = check(rows, moving_centers(rows, 4))
    assert [lists for lists, _ in stages] == [False, True, True, True]


@pytest.mark.parametrize("threads", [1, 2])
def test_few_directions_are_settled_by_bounds(
    monkeypatch: pytest.MonkeyPatch, threads: int
) -> None:
    # Several tiles of centers.
    monkeypatch.setattr(pairs, "CENTERS", 300)
    rows = falling_rows()
    stages = check(rows, moving_centers(rows, 4), threads)
    assert [bounds for _, bounds in stages] == [LeadingBounds] * 4


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("make", ["falling", "isotropic"])
def test_integers_settle_any_rows(monkeypatch: pytest.MonkeyPatch, threads: int, make: str) -> None:
    pytest.importorskip("torch")
    monkeypatch.setattr(pairs, "CENTERS", 300)
    # As if their products took no time.
    monkeypatch.setattr(choice, "_measured", lambda *arrays: 0.0)
    monkeypatch.setattr(choice, "_LOAD", 0)
    rows = falling_rows() if make == "falling" else builders.unit_vectors(N, D)
    # Leading parts would settle some rows sooner.
    monkeypatch.setattr(choice.LeadingBounds, "work", lambda self: 1e9)
    stages = check(rows, moving_centers(rows, 4), threads, allow_integers=True)
    assert [bounds for _, bounds in stages] == [IntegerBounds] * 4


@pytest.mark.parametrize("most", [64, 512])
def test_few_pairs_are_kept_at_once(monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    rows = falling_rows()
    passes = moving_centers(rows, 3)
    counts = {}

    def noted(name: str, function):
        def call(found, least, full):
            counts[name] = max(counts.get(name, 0), sum(len(part[0]) for part in found))
            return function(found, least, full)

        return call

    monkeypatch.setattr(pairs, "CENTERS", 100)
    still = pairs.still
    monkeypatch.setattr(pairs, "still", noted("freely", still))
    check(rows, passes)
    monkeypatch.setattr(pairs, "still", noted("held", still))
    monkeypatch.setattr(pairs, "_MOST_PAIRS", most)
    check(rows, passes)
    assert most < counts["held"] < 0.8 * counts["freely"]


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3])
@pytest.mark.parametrize("make", ["falling", "isotropic"])
def test_few_centers_that_moved_far_are_compared_alone(
    monkeypatch: pytest.MonkeyPatch, share: float, make: str
) -> None:
    rows = falling_rows() if make == "falling" else builders.unit_vectors(N, D)
    rng = np.random.default_rng(0)
    passes = moving_centers(rows, 1)
    for _ in range(3):
        # Some jump to a row, among them rows that lie between others' centers; some stir; most of
        # the others move by less than almost all gaps, and the rest not at all.
        centers = passes[-1].astype(float)
        jump, stir = rng.random((2, K)) < share
        centers[jump] = rows[rng.choice(N, jump.sum())]
        centers[stir] += 0.02 * rng.standard_normal((stir.sum(), D))
        stay = ~(jump | stir) & (rng.random(K) < 0.3)
        little = ~(jump | stir | stay)
        centers[little] += 1e-6 * rng.standard_normal((little.sum(), D))
        centers = (centers / np.linalg.norm(centers, axis=1, keepdims=True)).astype(np.float32)
        centers[stay] = passes[-1][stay]
        passes.append(centers)
    compared = []
    by_bounds = Assignment._by_bounds

    def counted(self, rows, ids, known, other, count, open_):
        compared.append(count[open_].sum())
        return by_bounds(self, rows, ids, known, other, count, open_)

    monkeypatch.setattr(Assignment, "_by_bounds", counted)
    check(rows, passes)
    # The first pass compares all, and the second knows of no gaps.
    assert sum(compared) < (2.4, 2.6, 4.1)[[0.0, 0.02, 0.3].index(share)] * N * K


def test_rows_in_all_directions_are_searched_in_full() -> None:
    rows = builders.unit_vectors(N, D)
    stages = check(rows, moving_centers(rows, 4))
    assert [bounds for _, bounds in stages] == [Products] * 4


@pytest.mark.parametrize("angle", [1e-4, 0.01, 0.3, 0.7])
def test_rivals_beyond_twice_the_angle_are_never_nearer(angle: float) -> None:
    # In a plane: the row at `angle` from its center, a rival just within twice that on its side.
    bound = 1e-6
    known = np.array([np.cos(angle)], np.float32)
    assert np.cos(2 * angle) > pairs.least_similarity(known, bound)[0]
    assert pairs.least_similarity(known, bound)[0] > np.cos(2 * angle) - 2e-5
    assert pairs.least_similarity(np.array([-0.1], np.float32), bound)[0] < -1
