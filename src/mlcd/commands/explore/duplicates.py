"""Near-duplicates within clusters, estimated from 64 bits of each image.

What remains of an embedding x beside its center c, r = x − (x·c) c, is cut by 64 hyperplanes of
random signs (Charikar, Similarity estimation techniques from rounding algorithms, STOC 2002): the
share of bits in which two images differ is the angle θ between their remainders over π. The
similarities s and t to the center are known: the cosine is s·t + √(1 − s²) √(1 − t²) cos θ.
So one pass and eight bytes per image estimate what a comparison of all embeddings of a cluster
would tell.
"""

from __future__ import annotations

import numpy as np

#: Two images with an estimated cosine of this and more are near-duplicates.
NEAR = 0.95
#: Images of a cluster that are compared with each other, evenly spaced if there are more.
MOST = 2048
_BITS = 64
#: Numbers of a remainder are rounded to this part of 1, so that sums of them are exact.
_STEP = 1 << 14


def planes(d: int) -> np.ndarray:
    """Return 64 hyperplanes, float32 [d, 64] of −1 and 1, the same for every run."""
    signs = np.random.default_rng(0).integers(0, 2, (d, _BITS))
    return (2 * signs - 1).astype(np.float32)


def signatures(rows: np.ndarray, centers: np.ndarray, normals: np.ndarray) -> np.ndarray:
    """Return 64 bits of each of `rows` float32 [n, d] beside its center [n, d], uint64 [n].

    Sums are of integers below 2²⁴, exact in float32: bits do not depend on how a product adds up.
    """
    along = (rows * centers).sum(axis=1, keepdims=True)
    rest = np.rint((rows - along * centers) * _STEP)
    bits = rest @ normals > 0
    packed: np.ndarray = np.packbits(bits, axis=1, bitorder="little").view("<u8")[:, 0]
    return packed


def cosines(
    signature: np.ndarray, other: np.ndarray, similarity: np.ndarray, of_other: np.ndarray
) -> np.ndarray:
    """Return estimated cosines of images with others, float32, from signatures beside one center.

    And from their similarities to it. All shapes are broadcast.
    """
    s, t = (np.clip(value, 0, 1).astype(np.float32) for value in (similarity, of_other))
    angle = _COSINES[np.bitwise_count(signature ^ other)]
    return np.asarray(s * t + np.sqrt(1 - s * s) * np.sqrt(1 - t * t) * angle)


def share(signature: np.ndarray, similarity: np.ndarray) -> float:
    """Return the share of a cluster's images, 0 to 1, that have a near-duplicate among the others.

    `signature` uint64 [n], `similarity` float32 [n] to the center.
    """
    n = len(signature)
    if n > MOST:
        chosen = np.linspace(0, n - 1, MOST).astype(np.int64)
        signature, similarity, n = signature[chosen], similarity[chosen], MOST
    if n < 2:
        return 0.0
    cosine = cosines(signature[:, None], signature[None], similarity[:, None], similarity[None])
    np.fill_diagonal(cosine, -1)
    return float((cosine >= NEAR).any(axis=1).mean())


_COSINES = np.cos(np.pi * np.arange(_BITS + 1) / _BITS).astype(np.float32)
