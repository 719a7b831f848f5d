"""Means over seeds with Student's t-intervals, paired by seed where two settings are compared.

Two cells of one seed start from the same weights, see the same images in the same order with the
same crops, and are scored on the same test images: the difference of a seed varies less than
either score. An interval says how much other seeds would move a mean. It does not say how much
other test images would.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

LEVEL = 0.95


class Interval(NamedTuple):
    """A mean of `n` values ± half the width of its 95 % interval, None for a single value."""

    mean: float
    half: float | None
    n: int

    @property
    def verdict(self) -> str:
        """Say whether a difference is above zero, below zero or open, at this many seeds."""
        if self.half is None or abs(self.mean) <= self.half:
            return "open"
        return "above" if self.mean > 0 else "below"


def interval(values: Sequence[float]) -> Interval:
    """Return the mean and its interval by Student's t with n − 1 degrees of freedom."""
    from scipy import stats

    n, mean = len(values), statistics.fmean(values)
    if n < 2:
        return Interval(mean, None, n)
    error = statistics.stdev(values) / math.sqrt(n)
    return Interval(mean, float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * error, n)


def difference(one: Mapping[int, float], other: Mapping[int, float]) -> Interval | None:
    """Return `one` − `other` (seed → value) over the seeds that both have, or None without any."""
    seeds = sorted(set(one) & set(other))
    if not seeds:
        return None
    return interval([one[seed] - other[seed] for seed in seeds])
