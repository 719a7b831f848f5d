"""Two coordinates of each center, so that neighbors lie together: a map of the clusters.

Centers start along the two directions in which they vary most. Then each is drawn to its neighbors
and pushed from a few random others, as in LargeVis (Tang et al. 2016, arXiv:1602.00370), all at
once, so that the result does not depend on threads.
"""

from __future__ import annotations

import numpy as np
import threadpoolctl

from mlcd.utils.logging import progress

#: Random others that push a center in each step, and steps; fewer where there are many centers.
_OTHERS, _STEPS, _FEW = 5, 200, 20_000
_BLOCK = 1 << 14
#: Share of its way to the middle by which a center moves in each step.
_INWARD = 0.05
#: Numbers rounded to such parts have exact sums of products in float64, in whatever order.
_PARTS = 1 << 12


def layout(
    centers: np.ndarray, near: np.ndarray, *, seed: int = 0, steps: int | None = None
) -> np.ndarray:
    """Return the places of `centers` (float32 [K, d]) on the map, float32 [K, 2], within −1 … 1.

    `near`: their neighbors, integers [K, m]. Equal centers, neighbors, seed and steps give equal
    places.
    """
    k = len(centers)
    rng = np.random.default_rng(seed)
    place = _principal(centers) + rng.uniform(-1e-3, 1e-3, (k, 2))
    if near.shape[1] == 0:
        return _scaled(place)
    place *= 10
    if steps is None:
        steps = max(_STEPS // 5, round(_STEPS * min(1.0, (_FEW / k) ** 0.5)))
    for step in progress(range(steps), label="map of centers", unit="step"):
        move = np.zeros((k, 2))
        for column in near.T:
            apart = place[column] - place
            pull = apart / (1 + (apart * apart).sum(axis=1, keepdims=True))
            # Both move: a center that is the neighbor of many is moved by all of them.
            move += pull
            for axis in (0, 1):
                move[:, axis] -= np.bincount(column, pull[:, axis], minlength=k)
        move /= near.shape[1]
        for _ in range(_OTHERS):
            apart = place - place[rng.integers(0, k, k)]
            square = (apart * apart).sum(axis=1, keepdims=True)
            move += np.clip(apart / ((0.05 + square) * (1 + square)), -2, 2) / _OTHERS
        # Groups that no neighbor ties to the others would drift away.
        move -= _INWARD * place
        place += np.clip(move, -4, 4) * (1 - step / steps)
    return _scaled(place)


def _principal(centers: np.ndarray) -> np.ndarray:
    """Return the centers along their two directions of greatest variance, float64 [K, 2]."""
    k, d = centers.shape
    products, sums = np.zeros((d, d)), np.zeros(d)
    for start in range(0, k, _BLOCK):
        rows = np.rint(centers[start : start + _BLOCK].astype(np.float64) * _PARTS)
        products += rows.T @ rows
        sums += rows.sum(axis=0)
    with threadpoolctl.threadpool_limits(1):
        axes = np.linalg.eigh(products / k - np.outer(sums / k, sums / k))[1][:, ::-1][:, :2]
    # A direction and its opposite are one: the largest entry is positive.
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    axes = np.rint(axes * _PARTS)
    place = np.zeros((k, 2))
    for start in range(0, k, _BLOCK):
        rows = np.rint(centers[start : start + _BLOCK].astype(np.float64) * _PARTS)
        place[start : start + _BLOCK, : axes.shape[1]] = rows @ axes
    return np.asarray(place / max(float(np.abs(place).max()), 1e-9))


def _scaled(place: np.ndarray) -> np.ndarray:
    """Return places float32 within −1 … 1, with one scale for both axes, around their middle."""
    low, high = place.min(axis=0), place.max(axis=0)
    half = max(float((high - low).max()) / 2, 1e-9)
    return np.asarray((place - (low + high) / 2) / half, np.float32)
