"""The sampler of negative classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mlcd.classifier import NegativeSampler, shard_bounds

torch.set_num_threads(1)


# The sampler.
@pytest.mark.parametrize(("classes", "count"), [(1, 1), (10, 3), (4096, 100), (20_001, 6_000)])
def test_exactly_that_many_distinct_classes(classes: int, count: int) -> None:
    sampler = NegativeSampler(classes, count, seed=1)
    for step in range(5):
        drawn = sampler.draw(step, 0, classes)
        assert len(drawn) == count and (np.diff(drawn) > 0).all()
        assert drawn.min() >= 0 and drawn.max() < classes


def test_ranges_are_parts_of_one_set() -> None:
    sampler = NegativeSampler(20_001, 2_000, seed=1)
    whole = sampler.draw(3, 0, 20_001)
    for world in (2, 3, 7, 50):
        parts = [sampler.draw(3, *shard_bounds(20_001, world, rank)) for rank in range(world)]
        assert np.array_equal(np.concatenate(parts), whole)
    assert not np.array_equal(whole, sampler.draw(4, 0, 20_001))
    assert not np.array_equal(whole, NegativeSampler(20_001, 2_000, seed=2).draw(3, 0, 20_001))


def test_every_class_is_drawn_as_often_as_another() -> None:
    """Chi-square of the number of times each class, and each pair of neighbors, was drawn."""
    classes, count, steps = 4200, 1050, 400  # The second block holds 104 classes.
    sampler = NegativeSampler(classes, count, seed=0)
    drawn = np.zeros((steps, classes), dtype=bool)
    for step in range(steps):
        drawn[step, sampler.draw(step, 0, classes)] = True
    share = count / classes
    for often, chance in (
        (drawn.sum(0), share),
        ((drawn[:, :-1] & drawn[:, 1:]).sum(0), share * (count - 1) / (classes - 1)),
    ):
        statistic = ((often - steps * chance) ** 2 / (steps * chance * (1 - chance))).sum()
        freedom = len(often)
        assert abs(statistic - freedom) < 5 * np.sqrt(2 * freedom)
    # The share of the small block varies as a hypergeometric draw does, neither more nor less.
    small = drawn[:, 4096:].sum(1)
    variance = 104 * share * (1 - share) * (classes - 104) / (classes - 1)
    assert abs(small.mean() - 104 * share) < 5 * np.sqrt(variance / steps)
    assert 0.7 < small.var() / variance < 1.4
