"""Exact sums of rows: no order, no overflow."""

from __future__ import annotations

import numpy as np

from helpers import builders
from mlcd.stages.cluster.sums import ClusterSums


def test_sums_do_not_depend_on_the_order_of_rows() -> None:
    rng = np.random.default_rng(0)
    rows, cluster = builders.unit_vectors(2000, 17), rng.integers(0, 9, 2000)
    totals = []
    for order in (np.arange(2000), rng.permutation(2000)):
        sums = ClusterSums(9, 17, 2000)
        for part in np.array_split(order, 13):
            sums.add(rows, part, cluster[part])
        totals.append(sums.total)
    np.testing.assert_array_equal(*totals)
    plain = np.zeros((9, 17))
    np.add.at(plain, cluster, rows.astype(float))
    np.testing.assert_allclose(sums.total * 2.0**-sums.bits, plain, atol=1e-7)
    np.testing.assert_array_equal(sums.size, np.bincount(cluster))


def test_sums_of_many_rows_do_not_overflow() -> None:
    sums = ClusterSums(1, 1, 700_000_000)
    sums.total[0, 0] = 699_999_999 << sums.bits
    sums.add(np.ones((1, 1), np.float32), np.zeros(1, int), np.zeros(1, int))
    assert sums.total.item() * 2.0**-sums.bits == 700_000_000
