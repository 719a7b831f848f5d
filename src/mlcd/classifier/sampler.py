"""One uniform random subset of the classes per step, each rank drawing only its own part of it.

A permutation of K = 10 million classes on every rank is slow, and anything drawn per rank depends
on the number of ranks. Here the classes are cut into fixed blocks of 4,096. How many of the M
negatives fall into each block is a multivariate hypergeometric draw, which every rank makes alike;
which classes of a block they are is the order of random 64-bit keys from a counter-based generator,
which can be read from any position. The product of the two is exactly uniform over all subsets of
size M (given ideal random numbers), and holds at any number of ranks.
"""

from __future__ import annotations

import numpy as np

BLOCK = 4096
# Blocks worked on at a time: their keys stay in a CPU's cache.
_GROUP = 32


def generator(*identity: int) -> np.random.Generator:
    """Return a counter-based generator (Philox) whose stream is a function of the numbers alone."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(identity)))


class NegativeSampler:
    """Draws `count` of `num_classes` classes without replacement as a function of (seed, step)."""

    def __init__(self, num_classes: int, count: int, seed: int) -> None:
        if not 0 <= count <= num_classes:
            raise ValueError(f"count {count}: expected at most num_classes {num_classes}")
        if seed < 0:
            raise ValueError(f"seed {seed}: expected a number that is not negative")
        self.num_classes, self.count, self.seed = num_classes, count, seed
        blocks = -(-num_classes // BLOCK)
        self._sizes = np.full(blocks, BLOCK)
        self._sizes[-1] = num_classes - BLOCK * (blocks - 1)

    def draw(self, step: int, start: int, stop: int) -> np.ndarray:
        """Return the classes of step `step` in [start, stop), int64, rising.

        The union over any division of [0, num_classes) into ranges is the same set of exactly
        `count` classes.
        """
        if start >= stop or self.count == 0:
            return np.zeros(0, np.int64)
        if self.count == self.num_classes:
            return np.arange(start, stop)
        random = generator(self.seed, step)
        # "count" would need count steps, "marginals" needs one for each block.
        quota = random.multivariate_hypergeometric(self._sizes, self.count, method="marginals")
        first, last = start // BLOCK, -(-stop // BLOCK)
        key = np.random.SeedSequence((self.seed, step, 1)).generate_state(2, np.uint64)
        parts = [
            self._blocks(key, group, quota[group : min(group + _GROUP, last)])
            for group in range(first, last, _GROUP)
        ]
        classes = np.concatenate(parts)
        return classes[np.searchsorted(classes, start) : np.searchsorted(classes, stop)]

    def _blocks(self, key: np.ndarray, first: int, quota: np.ndarray) -> np.ndarray:
        """Return quota[i] classes of block first + i for every i: those of the lowest keys."""
        # A Philox counter yields four numbers.
        stream = np.random.Philox(key=key, counter=first * BLOCK // 4)
        keys = stream.random_raw(len(quota) * BLOCK)
        # Beyond the last class: never among the lowest.
        keys[max(0, self.num_classes - first * BLOCK) :] = np.iinfo(np.uint64).max
        keys = keys.reshape(-1, BLOCK)
        # Each key carries its place in the block in its low bits: no two are equal.
        keys &= ~np.uint64(BLOCK - 1)
        keys |= np.arange(BLOCK, dtype=np.uint64)
        bound = np.sort(keys, axis=1)[np.arange(len(quota)), np.maximum(quota - 1, 0)]
        taken = (keys <= bound[:, None]) & (quota > 0)[:, None]
        return np.flatnonzero(taken) + first * BLOCK
