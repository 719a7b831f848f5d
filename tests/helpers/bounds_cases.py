"""Rows and centers of several kinds, for bounds of their similarities."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from helpers.builders import unit, unit_vectors

Case = tuple[np.ndarray, np.ndarray]


def planted(k: int, n: int = 500, d: int = 80, noise: float = 3.0) -> Case:
    """Return rows around `k` centers, and those centers with some copies among them."""
    rng = np.random.default_rng(5)
    centers = unit(rng.standard_normal((k, d)))
    centers[k // 2 : k // 2 + 20] = centers[:20]
    rows = unit(noise * centers[rng.integers(0, k, n)] + unit(rng.standard_normal((n, d))))
    return rows.astype(np.float32), centers.astype(np.float32)


def isotropic() -> Case:
    """Return rows and centers in all directions alike."""
    return unit_vectors(500, 80), unit_vectors(1100, 80, seed=1)


def spiky() -> Case:
    """Return rows and centers with few large entries, around a common direction."""
    rng = np.random.default_rng(0)
    both = np.abs(rng.standard_normal((1600, 80))) ** 4 + 0.3
    both = unit(both).astype(np.float32)
    return both[:500], both[500:]


def axes() -> Case:
    """Return rows and centers of a single entry each, and rows that are centers."""
    rng = np.random.default_rng(0)
    centers = np.eye(80, dtype=np.float32)[rng.integers(0, 80, 1100)]
    centers[::3] *= -1
    rows = np.concatenate([centers[:100], unit_vectors(400, 80)])
    return rows, centers


KINDS: dict[str, Callable[[], Case]] = {
    "around centers": lambda: planted(1100),
    "isotropic": isotropic,
    "spiky": spiky,
    "axes": axes,
}
