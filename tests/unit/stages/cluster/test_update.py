"""Repair of empty clusters."""

from __future__ import annotations

import numpy as np

from helpers.builders import unit
from mlcd.stages.cluster.sums import ClusterSums
from mlcd.stages.cluster.update import move_centers, repair_empty


def test_repair_splits_the_greatest_spread_first_and_never_copies() -> None:
    # Cluster 0: many copies of one row; 1: a wide one; 2: a narrow one; 3 and 4: empty.
    rng = np.random.default_rng(1)
    wide = unit(np.eye(8)[1] + 0.3 * rng.standard_normal((50, 8)))
    narrow = unit(np.eye(8)[2] + 0.05 * rng.standard_normal((60, 8)))
    rows = np.concatenate([np.tile(np.eye(8)[0], (500, 1)), wide, narrow]).astype(np.float32)
    sums = ClusterSums(5, 8, len(rows))
    sums.add(rows, np.arange(610), np.repeat([0, 1, 2], [500, 50, 60]))
    centers = unit(rng.standard_normal((5, 8))).astype(np.float32)
    before = centers.copy()
    spread = move_centers(centers, sums).spread
    np.testing.assert_array_equal(centers[3:], before[3:])
    old, moved = centers.copy(), np.zeros(5, bool)
    assert repair_empty(centers, sums.size, spread, [0, 1], moved) == 2
    np.testing.assert_array_equal(centers[[0, 2]], old[[0, 2]])
    assert moved.tolist() == [False, True, False, True, True]
    for j in (1, 3, 4):
        assert not (centers[j] == old[j]).all()
        assert centers[j] @ old[1] > 0.999
    assert len(np.unique(centers, axis=0)) == 5
    only_copies = np.zeros(5)
    untouched = centers.copy()
    assert repair_empty(centers, sums.size, only_copies, [0, 1], moved) == 2
    np.testing.assert_array_equal(centers, untouched)
