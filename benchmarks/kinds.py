"""Kinds of rows on which a clustering is measured, each a function of a seed alone.

- `isotropic`: all directions alike. There is no structure that a search could use.
- `planted`: around random directions, with little noise.
- `spectrum`: the variance along direction j is 1 / j, as that of embeddings falls.
- `mixture`: groups of very different size and shape. Group g has a share of rows that falls as
  1 / g, its directions fall as those of `spectrum`, and each has a spread of its own along each
  direction. Nothing was tuned on this kind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

_BLOCK = 10_000
Rows = Callable[[int], np.ndarray]


def isotropic(rng: np.random.Generator, d: int, groups: int) -> Rows:
    """Return make(n) → rows [n, d] in all directions alike."""
    return lambda n: rng.standard_normal((n, d), dtype=np.float32)


def planted(rng: np.random.Generator, d: int, groups: int) -> Rows:
    """Return make(n) → rows [n, d] around `groups` random directions."""
    centers = 3 * rng.standard_normal((groups, d), dtype=np.float32)

    def make(n: int) -> np.ndarray:
        rows = rng.standard_normal((n, d), dtype=np.float32)
        rows += centers[rng.integers(0, groups, n)]
        return rows

    return make


def _fall(d: int) -> np.ndarray:
    fall: np.ndarray = np.arange(1, d + 1, dtype=np.float32) ** -0.5
    return fall


def spectrum(rng: np.random.Generator, d: int, groups: int) -> Rows:
    """Return make(n) → rows [n, d] whose variance falls as 1 / j along random directions."""
    turn = np.linalg.qr(rng.standard_normal((d, d)))[0].astype(np.float32)
    return lambda n: rng.standard_normal((n, d), dtype=np.float32) * _fall(d) @ turn


def mixture(rng: np.random.Generator, d: int, groups: int) -> Rows:
    """Return make(n) → rows [n, d] of groups of falling size, each with its own spreads."""
    turn = np.linalg.qr(rng.standard_normal((d, d)))[0].astype(np.float32)
    centers = rng.standard_normal((groups, d), dtype=np.float32) * _fall(d)
    spreads = 0.6 * _fall(d) * rng.lognormal(0, 0.7, (groups, d)).astype(np.float32)
    share = 1 / np.arange(1, groups + 1)
    share /= share.sum()

    def make(n: int) -> np.ndarray:
        group = rng.choice(groups, n, p=share)
        rows = rng.standard_normal((n, d), dtype=np.float32) * spreads[group]
        return (rows + centers[group]) @ turn

    return make


KINDS: dict[str, Callable[[np.random.Generator, int, int], Rows]] = {
    "isotropic": isotropic,
    "planted": planted,
    "spectrum": spectrum,
    "mixture": mixture,
}


def blocks(kind: str, n: int, d: int, groups: int, seed: int = 0) -> Iterator[np.ndarray]:
    """Iterate over `n` unit rows of a kind, float32 [≤ 10,000, d] at a time."""
    make = KINDS[kind](np.random.default_rng(seed), d, groups)
    for start in range(0, n, _BLOCK):
        rows = make(min(_BLOCK, n - start))
        yield rows / np.linalg.norm(rows, axis=1, keepdims=True)


def write(path: Path, kind: str, n: int, d: int, groups: int, seed: int = 0) -> None:
    """Write them as float16 embeddings."""
    from mlcd.data import hdf5

    with hdf5.writing(path, "embeddings", {"model": "{}"}) as writer:
        for rows in blocks(kind, n, d, groups, seed):
            writer.append("embedding", rows.astype(np.float16))
