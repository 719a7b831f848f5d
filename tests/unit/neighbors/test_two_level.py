"""Two-level search, held to plain versions."""

from __future__ import annotations

import numpy as np
import pytest

from helpers import builders
from helpers.search_cases import hard_case
from mlcd.neighbors.exact import ExactSearch, dots
from mlcd.neighbors.two_level import TwoLevelSearch, agreement, group_directions


def plain_two_level(
    rows: np.ndarray, centers: np.ndarray, groups: np.ndarray, probes: int, l: int
) -> np.ndarray:
    """Return the `l` nearest centers among those of each row's nearest groups, row by row."""
    group = ExactSearch(groups).nearest(centers, 1)[:, 0]
    used = np.unique(group)
    out = []
    for row in rows:
        scores = [dots(row[None], groups, [0], [g])[0] for g in used]
        probed = used[np.argsort(-np.array(scores), kind="stable")[:probes]]
        ids = np.flatnonzero(np.isin(group, probed))
        if len(ids) < l:
            ids = np.arange(len(centers))
        exact = dots(row[None], centers, np.zeros(len(ids), int), ids)
        out.append(ids[np.lexsort((ids, -exact))[:l]])
    return np.array(out)


@pytest.mark.parametrize(("probes", "l"), [(1, 1), (1, 9), (3, 4), (50, 8)])
def test_finds_the_nearest_centers_of_the_nearest_groups(probes: int, l: int) -> None:
    rows, centers = hard_case()
    rows = rows[::3]
    groups = builders.unit_vectors(12, 32, seed=8)
    expected = plain_two_level(rows, centers, groups, probes, l)
    search = TwoLevelSearch(centers, groups, probes)
    np.testing.assert_array_equal(search.nearest(rows, l), expected)
    if probes == 50:
        np.testing.assert_array_equal(expected, ExactSearch(centers).nearest(rows, l))
    elif probes == 1:
        assert (expected != ExactSearch(centers).nearest(rows, l)).any()


def test_same_ids_for_any_block_and_threads() -> None:
    rows, centers = hard_case()
    groups = group_directions(centers, 12)
    whole = TwoLevelSearch(centers, groups, 2, threads=1).nearest(rows, 5)
    for threads, step in ((1, 7), (2, 64)):
        np.testing.assert_array_equal(group_directions(centers, 12, threads=threads), groups)
        search = TwoLevelSearch(centers, groups, 2, threads=threads)
        parts = [search.nearest(rows[i : i + step], 5) for i in range(0, len(rows), step)]
        np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_agreement_counts_labels_in_any_order() -> None:
    exact = np.array([[1, 2, 3], [4, 5, 6]])
    assert agreement(exact[:, ::-1], exact) == 1
    assert agreement(np.array([[1, 2, 9], [7, 8, 9]]), exact) == 2 / 6
    assert agreement(np.zeros((0, 3)), np.zeros((0, 3))) == 1
