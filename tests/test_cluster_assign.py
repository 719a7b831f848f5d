"""Assignment over many passes, held to a full search of each pass."""

from __future__ import annotations

import builders
import numpy as np
import pytest

from mlcd.cluster import assign
from mlcd.cluster.assign import Assignment
from mlcd.neighbours.exact import ExactSearch

K, D, N = 1100, 96, 6000


def moving_centres(rows: np.ndarray, passes: int) -> list[np.ndarray]:
    """Return centres [K, d] of several Lloyd iterations from rows with copies among them."""
    rng = np.random.default_rng(1)
    centres = rows[rng.choice(len(rows), K, replace=False)].copy()
    centres[5:8] = centres[4]
    found = []
    for _ in range(passes):
        found.append(centres)
        nearest = (rows @ centres.T).argmax(axis=1)
        sums = np.zeros((K, D))
        np.add.at(sums, nearest, rows)
        norms = np.linalg.norm(sums, axis=1, keepdims=True)
        centres = np.where(norms > 0, sums / np.maximum(norms, 1e-9), centres).astype(np.float32)
        # Two jump far away, one onto another.
        centres[:2] = rows[rng.choice(len(rows), 2)]
        centres[2] = centres[3]
    return found


def check(rows: np.ndarray, threads: int = 1) -> list[Assignment]:
    """Check every pass in blocks of uneven length against a full search."""
    assignment = Assignment(1000, len(rows), threads=threads)
    stages = []
    for centres in moving_centres(rows, 4):
        assignment.start(centres)
        expected = ExactSearch(centres, threads=1, prune=False).nearest(rows, 1)[:, 0]
        for first in (0, 4000, 4001):
            block = rows[first : {0: 4000, 4000: 4001, 4001: len(rows)}[first]]
            found = assignment.nearest(1000 + first, block)
            np.testing.assert_array_equal(found, expected[first : first + len(block)])
            assignment.keep(1000 + first, found)
        stages.append((assignment._lists is not None, assignment._heads is not None))
        np.testing.assert_array_equal(assignment.last, expected)
    return stages


def test_groups_apart_are_settled_by_lists() -> None:
    rows = builders.unit_vectors(N, D, groups=900)
    rows[3000:3010] = rows[17]
    stages = check(rows)
    assert [lists for lists, _ in stages] == [False, True, True, True]


@pytest.mark.parametrize("threads", [1, 2])
def test_few_directions_are_settled_by_heads(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    # Length falls along the directions, as in real embeddings; several tiles of centres.
    monkeypatch.setattr(assign, "_CENTRES", 300)
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((N, D)) * np.exp(-np.arange(D) / 8)
    rows[100:105] = rows[3]
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    assert all(heads for _, heads in check(rows, threads))


def test_rows_in_all_directions_are_searched_in_full() -> None:
    stages = check(builders.unit_vectors(N, D))
    assert not any(heads for _, heads in stages)


def test_kept_centres_come_back() -> None:
    assignment = Assignment(10, 4)
    assert assignment.keep(11, np.array([7, 8])).tolist() == [-1, -1]
    assert assignment.keep(10, np.array([1, 2, 3])).tolist() == [-1, 7, 8]
    assert assignment.last.tolist() == [1, 2, 3, -1]


@pytest.mark.parametrize("angle", [1e-4, 0.01, 0.3, 0.7])
def test_rivals_beyond_twice_the_angle_are_never_nearer(angle: float) -> None:
    # In a plane: the row at `angle` from its centre, a rival just within twice that on its side.
    bound = 1e-6
    known = np.array([np.cos(angle)], np.float32)
    assert np.cos(2 * angle) > assign._least(known, bound)[0]
    assert assign._least(known, bound)[0] > np.cos(2 * angle) - 2e-5
    assert assign._least(np.array([-0.1], np.float32), bound)[0] < -1
