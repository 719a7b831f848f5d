"""Learning rates."""

import itertools

import pytest

from mlcd.training.lr_schedule import factor


def test_learning_rates():
    rates = [factor(step, 100, 10, "cosine") for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and rates[9] == 1.0 == max(rates)
    assert rates[55] == pytest.approx(0.5) and 0 < rates[99] < 0.001
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[9:]))
    assert factor(55, 100, 10, "linear") == pytest.approx(0.5)
    assert factor(99, 100, 10, "constant") == 1.0
    # A run shorter than its warm-up still reaches the peak.
    assert max(factor(step, 4, 2000, "cosine") for step in range(4)) == 1.0
