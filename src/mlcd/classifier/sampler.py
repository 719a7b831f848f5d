"""One uniform random subset of the classes per step, each rank drawing only its own part of it.

A permutation of K = 10 million classes on every rank is slow, and anything drawn per rank depends
on the number of ranks. Here the classes are cut into fixed blocks of 16,384. How many of the M
negatives fall into each block is a multivariate hypergeometric draw, which every rank makes alike;
which classes of a block they are is a draw without replacement from the block's own stream, which
a counter-based generator begins at once. The product of the two is exactly uniform over all subsets
of size M (given ideal random numbers), and holds at any number of ranks. Both draws are numpy's, so
another numpy may draw other negatives.
"""

from __future__ import annotations

import numpy as np

#: Classes that are drawn from together. numpy draws a tenth of fewer than 10,000 more slowly, and a
#: rank draws from the whole of the two blocks at its ends.
BLOCK = 16_384


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
        state = random.bit_generator.state
        # "count" would need count steps, "marginals" needs one for each block.
        quota = random.multivariate_hypergeometric(self._sizes, self.count, method="marginals")
        parts = []
        for block in range(start // BLOCK, -(-stop // BLOCK)):
            # Word 1 of the counter names the stream: 2^64 steps from each to the next.
            state["state"]["counter"][:2] = 0, 1 + block
            random.bit_generator.state = state
            size, some = int(self._sizes[block]), int(quota[block])
            part = random.choice(size, some, replace=False, shuffle=False)
            # numpy sorts with vectors. To mark the drawn and to find the marks takes several times
            # as long: no processor foresees where they are.
            part.sort()
            part += block * BLOCK
            if not start <= block * BLOCK <= stop - size:
                part = part[slice(*np.searchsorted(part, (start, stop)))]
            parts.append(part)
        return np.concatenate(parts)
