"""The minimizer of the probe, on functions whose minimum is known."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import rosen, rosen_der

from mlcd.stages.evaluate import lbfgs


def quadratic(seed: int, n: int):
    """Return a function with curvatures over four decades, and its minimum."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.standard_normal((n, n)))[0]
    curvature = torch.from_numpy((axes * np.logspace(-2, 2, n)) @ axes.T)
    lowest = torch.from_numpy(rng.standard_normal(n))

    def function(place):
        slope = curvature @ (place - lowest)
        return float((place - lowest) @ slope / 2), slope

    return function, lowest, curvature


def run(function, start, curvature, most=500, least=1e-12):
    visited = []

    def done(point):
        visited.append(point)
        return point.excess <= least

    inverse = 1 / curvature
    return lbfgs.minimize(function, start, lambda: inverse, most, done), visited


def test_it_finds_the_minimum_and_knows_how_far_it_is():
    function, lowest, curvature = quadratic(0, 30)
    found, visited = run(function, torch.zeros(30, dtype=torch.float64), torch.diag(curvature))
    assert found.value == function(found.place)[0] < 1e-10
    assert torch.allclose(found.place, lowest, atol=1e-4)
    values = [point.value for point in visited]
    assert values == sorted(values, reverse=True)
    assert [point.iterations for point in visited] == list(range(len(visited)))
    # On the way it may know a part of the curvature alone; at the end it is near.
    assert min(point.excess / point.value for point in visited) > 0
    assert found.value < 100 * found.excess


def test_the_curvature_that_is_given_saves_steps():
    scales = torch.logspace(-3, 3, 40, dtype=torch.float64)

    def function(place):
        return float((scales * place.square()).sum() / 2), scales * place

    start = torch.ones(40, dtype=torch.float64)
    known, _ = run(function, start, scales)
    unknown, _ = run(function, start, torch.ones_like(scales))
    assert known.iterations == 1
    assert unknown.iterations > 10


def test_a_curved_valley_is_followed_to_its_end():
    def function(place):
        return float(rosen(place.numpy())), torch.from_numpy(rosen_der(place.numpy()))

    start = torch.full((6,), -1.0, dtype=torch.float64)
    found, _ = run(function, start, torch.full_like(start, 100.0), least=1e-14)
    assert torch.allclose(found.place, torch.ones(6, dtype=torch.float64), atol=1e-4)


def test_it_stops_at_the_limit_and_where_rounding_ends_it():
    function, _, curvature = quadratic(1, 30)
    start = torch.zeros(30, dtype=torch.float64)
    assert run(function, start, torch.diag(curvature), most=3)[0].iterations == 3

    def rounded(place):
        value, slope = function(place.double())
        return float(np.float32(value)) + 1e3, slope.float()

    found, _ = run(rounded, start.float(), torch.diag(curvature).float(), most=10_000, least=0.0)
    assert found.iterations < 10_000
    assert found.value - 1e3 < 0.01
