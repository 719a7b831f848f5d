"""Which images of overfull clusters are left out: balance, then a cap.

Whole numbers only, so that no library's rounding decides. Within a cluster the order is a hash of
the image's bytes and the seed: it does not hang on which other lists a run has.
"""

from __future__ import annotations

import math

import numpy as np


def limits(sizes: np.ndarray, balance: str) -> np.ndarray:
    """Return how many images of each cluster the balance keeps, int64 [C].

    `sizes` int64 [C]. The mean m is of clusters that have any, rounded up: sqrt keeps √(n · m) of n
    over m, rounded up, as data that is drawn in proportion to the root of the size; mean keeps m.
    """
    used = int((sizes > 0).sum())
    if balance == "none" or not used:
        return sizes.astype(np.int64)
    mean = -(-int(sizes.sum()) // used)
    if balance == "mean":
        return np.asarray(np.minimum(sizes, mean), np.int64)
    roots = [math.isqrt(n * mean - 1) + 1 if n > mean else n for n in sizes.tolist()]
    return np.array(roots, np.int64)


def ranks(cluster: np.ndarray, digest: np.ndarray, seed: int) -> np.ndarray:
    """Return the place of each row in its cluster, int64 [n], in the order of a seeded hash.

    `cluster` int32 [n], `digest` uint64 [n] of the images' bytes. Equal hashes stay in their order.
    """
    order = np.lexsort((mixed(digest, seed), cluster))
    sizes = np.bincount(cluster) if len(cluster) else np.zeros(0, np.int64)
    starts = np.cumsum(sizes) - sizes
    place = np.empty(len(cluster), np.int64)
    place[order] = np.arange(len(cluster)) - starts[cluster[order]]
    return place


def mixed(values: np.ndarray, seed: int) -> np.ndarray:
    """Return a hash of each value and the seed, uint64 [n].

    The finalizer of SplitMix64 (Steele, Lea and Flood, 2014), whose sums wrap.
    """
    with np.errstate(over="ignore"):
        words = values.astype(np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % (1 << 64))
        words = (words ^ (words >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        words = (words ^ (words >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed_words: np.ndarray = words ^ (words >> np.uint64(31))
    return mixed_words
