"""Initial centers: random rows, k-means++ and its chains."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from helpers import builders
from helpers.builders import unit
from helpers.cluster_runs import files_of
from mlcd.config import Cluster
from mlcd.data.embeddings import Embeddings, open_all
from mlcd.neighbors.rows import Rows
from mlcd.stages.cluster import initial
from mlcd.stages.cluster.group import SingleProcess


def test_random_rows_depend_on_seed_and_n_only(tmp_path: Path) -> None:
    vectors = builders.unit_vectors(1000, 8)
    one = Rows(open_all(files_of(tmp_path / "a", vectors)), 1000)
    many = Rows(open_all(files_of(tmp_path / "b", vectors, 6)), 13)
    first = initial.random_rows(one, 50, 7)
    np.testing.assert_array_equal(first, initial.random_rows(many, 50, 7))
    assert len(np.unique(first, axis=0)) == 50
    assert (first != initial.random_rows(one, 50, 8)).any()


def test_kmeans_plus_plus_draws_by_squared_distance() -> None:
    # Three groups of copies: after a first row, the next is drawn by distance to it.
    points = np.repeat(unit(np.array([[1.0, 0, 0], [0.8, 0.6, 0], [0, 0, 1]])), [5, 10, 5], axis=0)
    points = points.astype(np.float32)
    pairs = np.zeros((3, 3))
    for seed in range(3000):
        first, second = initial.choose(points, 2, np.random.default_rng(seed))
        pairs[
            np.searchsorted([5, 15], first, "right"), np.searchsorted([5, 15], second, "right")
        ] += 1
    share = np.array([5, 10, 5]) / 20
    distance = 1 - points[[0, 5, 15]] @ points[[0, 5, 15]].T.astype(float)
    weight = distance * [5, 10, 5]
    expected = share[:, None] * weight / weight.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(pairs / 3000, expected, atol=0.035)


def test_kmeans_plus_plus_equals_the_plain_distances_and_spreads() -> None:
    points = builders.unit_vectors(2000, 16, groups=40, seed=2)
    chosen = initial.choose(points, 120, np.random.default_rng(0))
    assert len(set(chosen.tolist())) == 120
    spread = (points @ points[chosen].T).max(axis=1).mean()
    random = np.random.default_rng(0).choice(2000, 120, replace=False)
    assert spread > (points @ points[random].T).max(axis=1).mean()


def test_kmeans_plus_plus_never_samples_less_than_asked(tmp_path: Path) -> None:
    from mlcd.utils.errors import UserError

    rows = Rows(open_all(files_of(tmp_path, builders.unit_vectors(100, 8))), 100)
    for init in ("kmeans++", "afkmc2"):
        with pytest.raises(UserError, match=rf"cluster\.init: {re.escape(init)} holds 80 rows"):
            initial.from_sample(rows, Cluster(k=4, init=init, init_sample=20), room=100)


def test_chains_tend_to_the_draws_of_kmeans_plus_plus() -> None:
    # The case of test_kmeans_plus_plus_draws_by_squared_distance, where the second draw is known.
    points = np.repeat(unit(np.array([[1.0, 0, 0], [0.8, 0.6, 0], [0, 0, 1]])), [5, 10, 5], axis=0)
    points = points.astype(np.float32)
    pairs = np.zeros((3, 3))
    for seed in range(2000):
        chosen = initial.choose_by_chains(points, 2, 40, np.random.default_rng(seed))
        pairs[tuple(np.searchsorted([5, 15], chosen, "right"))] += 1
    distance = 1 - points[[0, 5, 15]] @ points[[0, 5, 15]].T.astype(float)
    weight = distance * [5, 10, 5]
    expected = np.array([5, 10, 5])[:, None] / 20 * weight / weight.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(pairs / 2000, expected, atol=0.035)


def test_chains_follow_what_those_before_them_chose() -> None:
    # Groups of copies: 64 chains are drawn at once, and none may choose a group again.
    points = np.repeat(builders.unit_vectors(300, 32), 7, axis=0)
    chosen = initial.choose_by_chains(points, 300, 50, np.random.default_rng(0))
    assert len(np.unique(chosen)) == 300
    assert len(np.unique(chosen // 7)) > 290
    random = np.random.default_rng(0).choice(2100, 300, replace=False)
    assert len(np.unique(random // 7)) < 230


def test_kmeans_plus_plus_takes_no_copy_while_others_are_left() -> None:
    # Copies of a chosen row have distance 0, also when both were drawn in one batch.
    points = np.repeat(builders.unit_vectors(60, 32), 7, axis=0)
    for seed in range(5):
        chosen = initial.choose(points, 60, np.random.default_rng(seed))
        assert sorted(chosen // 7) == list(range(60))


def test_each_rank_reads_its_own_part_of_the_first_centers(tmp_path: Path, monkeypatch) -> None:
    files = [Embeddings(path) for path in files_of(tmp_path, builders.unit_vectors(300, 8), 3)]
    whole = initial.random_rows(Rows(files, 16), 40, 3)
    read, one = [], Embeddings.read

    def noted(self: Embeddings, start: int, stop: int) -> np.ndarray:
        first = 100 * [file.path for file in files].index(self.path)
        read.append((first + start, first + stop))
        return one(self, start, stop)

    monkeypatch.setattr(Embeddings, "read", noted)
    found = []

    class Third(SingleProcess):
        """One of three ranks, whose rows are collected here."""

        def collect(self, mine: np.ndarray) -> np.ndarray | None:
            found.append(mine)
            return np.concatenate(found) if len(found) == 3 else None

    for rank in range(3):
        rows = Rows(files, 16, part=(rank, 3))
        read.clear()
        centers = initial.random_rows(rows, 40, 3, Third())
        # In slabs of a block, which may reach over the ends of the part.
        assert read and all(start < 100 * rank + 100 and stop > 100 * rank for start, stop in read)
    np.testing.assert_array_equal(centers, whole)
