"""The sampler of negative classes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mlcd.classifier import NegativeSampler, shard_bounds
from mlcd.classifier.sampler import BLOCK, generator

torch.set_num_threads(1)


def plain(classes: int, count: int, seed: int, step: int) -> list[int]:
    """Return all classes of a step: numpy draws how many of each block, and then which."""
    random = generator(seed, step)
    sizes = [min(BLOCK, classes - first) for first in range(0, classes, BLOCK)]
    quota = random.multivariate_hypergeometric(sizes, count, method="marginals")
    key = np.random.SeedSequence((seed, step)).generate_state(2, np.uint64)
    drawn: list[int] = []
    for block, (size, some) in enumerate(zip(sizes, quota, strict=True)):
        stream = np.random.Generator(np.random.Philox(key=key, counter=(block + 1) << 64))
        chosen = stream.choice(size, some, replace=False, shuffle=False)
        drawn += [block * BLOCK + int(each) for each in chosen]
    return sorted(drawn)


# Fewer classes than a block, whole blocks, a block of one class; none, few, most and all of them.
@pytest.mark.parametrize("classes", [1, 10, BLOCK, 2 * BLOCK, 3 * BLOCK + 1])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.9, 1.0])
@pytest.mark.parametrize("world", [1, 3, 80])
def test_equal_to_the_plain_draw_at_any_number_of_ranks(
    classes: int, share: float, world: int
) -> None:
    sampler = NegativeSampler(classes, round(share * classes), seed=3)
    parts = [sampler.draw(9, *shard_bounds(classes, world, rank)) for rank in range(world)]
    drawn = np.concatenate(parts)
    assert drawn.dtype == np.int64 and len(drawn) == sampler.count
    assert drawn.tolist() == plain(classes, sampler.count, 3, 9)


@pytest.mark.parametrize(("classes", "count"), [(1, 1), (10, 3), (4096, 100), (40_001, 6_000)])
def test_exactly_that_many_distinct_classes(classes: int, count: int) -> None:
    sampler = NegativeSampler(classes, count, seed=1)
    for step in range(5):
        drawn = sampler.draw(step, 0, classes)
        assert len(drawn) == count and (np.diff(drawn) > 0).all()
        assert drawn.min() >= 0 and drawn.max() < classes


def test_ranges_are_parts_of_one_set() -> None:
    sampler = NegativeSampler(40_001, 4_000, seed=1)
    whole = sampler.draw(3, 0, 40_001)
    for world in (2, 3, 7, 50):
        parts = [sampler.draw(3, *shard_bounds(40_001, world, rank)) for rank in range(world)]
        assert np.array_equal(np.concatenate(parts), whole)
    assert not np.array_equal(whole, sampler.draw(4, 0, 40_001))
    assert not np.array_equal(whole, NegativeSampler(40_001, 4_000, seed=2).draw(3, 0, 40_001))


def test_every_class_is_drawn_as_often_as_another() -> None:
    """Chi-square of the number of times each class, and each pair of neighbors, was drawn."""
    classes, count, steps = 16_488, 4_122, 400  # The second block holds 104 classes.
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
    small = drawn[:, BLOCK:].sum(1)
    variance = 104 * share * (1 - share) * (classes - 104) / (classes - 1)
    assert abs(small.mean() - 104 * share) < 5 * np.sqrt(variance / steps)
    assert 0.7 < small.var() / variance < 1.4
