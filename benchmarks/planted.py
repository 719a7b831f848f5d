"""Unit rows in groups of groups, as embeddings of images lie: written in blocks, from a seed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

#: Length of the random part over that of the direction it is added to, at the two levels.
NARROW, ROW = 0.8, 0.6
_BLOCK = 50_000


def unit(rows: np.ndarray) -> np.ndarray:
    """Divide each row by its norm."""
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def around(rng: np.random.Generator, directions: np.ndarray, n: int, spread: float) -> np.ndarray:
    """Return n unit rows float32, each around one of `directions` at random."""
    noise = unit(rng.standard_normal((n, directions.shape[1]), dtype=np.float32))
    return unit(directions[rng.integers(0, len(directions), n)] + spread * noise)


def directions(rng: np.random.Generator, d: int, wide: int, narrow: int) -> np.ndarray:
    """Return `narrow` unit directions around `wide` others, float32 [narrow, d]."""
    first = unit(rng.standard_normal((wide, d), dtype=np.float32))
    return around(rng, first, narrow, NARROW)


def blocks(n: int, d: int, *, wide: int, narrow: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Iterate over `n` unit rows around `narrow` directions, float32 [≤ 50,000, d] at a time."""
    rng = np.random.default_rng(seed)
    centers = directions(rng, d, wide, narrow)
    for start in range(0, n, _BLOCK):
        yield around(rng, centers, min(_BLOCK, n - start), ROW)


def write(path: Path, n: int, d: int, *, wide: int, narrow: int, seed: int = 0) -> None:
    """Write such rows as float16 embeddings."""
    from mlcd.data import hdf5

    with hdf5.writing(path, "embeddings", {"model": "{}"}) as writer:
        for rows in blocks(n, d, wide=wide, narrow=narrow, seed=seed):
            writer.append("embedding", rows.astype(np.float16))
