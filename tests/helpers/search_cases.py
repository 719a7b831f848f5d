"""Rows and centers with close calls and ties."""

from __future__ import annotations

import numpy as np

from helpers import builders
from helpers.builders import unit


def hard_case(d: int = 32) -> tuple[np.ndarray, np.ndarray]:
    """Rows and centers full of exact ties and of differences below float32's rounding."""
    rng = np.random.default_rng(0)
    base = builders.unit_vectors(40, d, seed=3)
    copies = np.concatenate([base, base[:20], base[:10]])
    close = base[:30].copy()
    for row in close:
        row[rng.integers(d)] = np.nextafter(row[rng.integers(d)], 2, dtype=np.float32)
    centers = np.concatenate([copies, unit(base[:30] + 1e-7), base[5:15]]).astype(np.float32)
    rows = np.concatenate([builders.unit_vectors(300, d, seed=4), base, centers])
    return rows, centers[rng.permutation(len(centers))]
