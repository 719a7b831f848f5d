"""Intervals of means over seeds."""

from __future__ import annotations

import pytest
from scipy import stats

from mlcd.stages.ablate.intervals import difference, interval


def test_intervals_are_students():
    one = {0: 0.50, 1: 0.53, 2: 0.49, 3: 0.55}
    other = {1: 0.50, 2: 0.48, 3: 0.53, 9: 0.1}
    found = interval(list(one.values()))
    low, high = stats.ttest_1samp(list(one.values()), 0).confidence_interval(0.95)
    assert (found.mean - found.half, found.mean + found.half) == pytest.approx((low, high))
    paired = difference(one, other)
    truth = stats.ttest_rel([0.53, 0.49, 0.55], [0.50, 0.48, 0.53])
    assert paired.n == 3 and paired.mean - paired.half == pytest.approx(
        truth.confidence_interval(0.95).low
    )
    assert paired.verdict == ("above" if truth.pvalue < 0.05 else "open")
    assert interval([0.5]).half is None and interval([0.5]).verdict == "open"
    assert difference({0: 1.0}, {1: 1.0}) is None
    assert interval([-1.0, -1.01]).verdict == "below"
