"""The negatives of a step that a rank draws, against numpy's choice.

    python benchmarks/negatives.py [--classes 1000000] [--ranks 8 80] [--repeats 9]

Contenders, one thread, each with a generator that is a function of (seed, step), rising order:

- numpy, own part: a share of the rank's own classes. Not the same properties: the set depends on
  the number of ranks, and each rank has exactly its share, so it is not uniform over all subsets.
- numpy, own part, unsorted: the same without the order, and from one generator for all steps.
- numpy, all classes: one set for all ranks, of which the rank takes its own part. The properties
  of ours.
- ours: NegativeSampler.draw of the middle rank.

The goal is the first, which has fewer properties. The memory of a draw is what one call adds.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import goals
import machine
import measure
import numpy as np
import spread

from mlcd.classifier import NegativeSampler, shard_bounds

RATIO = 0.1
#: Draws of one measurement.
DRAWS = 50

Draw = Callable[[int], object]


def ours(classes: int, ranks: int) -> Draw:
    sampler = NegativeSampler(classes, round(RATIO * classes), seed=0)
    start, stop = shard_bounds(classes, ranks, ranks // 2)
    return lambda step: sampler.draw(step, start, stop)


def own_part(classes: int, ranks: int) -> Draw:
    start, stop = shard_bounds(classes, ranks, ranks // 2)
    count = round(RATIO * (stop - start))

    def draw(step: int) -> np.ndarray:
        random = np.random.default_rng((0, step))
        return np.sort(random.choice(stop - start, count, replace=False)) + start

    return draw


def unsorted_part(classes: int, ranks: int) -> Draw:
    start, stop = shard_bounds(classes, ranks, ranks // 2)
    count, random = round(RATIO * (stop - start)), np.random.default_rng(0)
    return lambda _: random.choice(stop - start, count, replace=False, shuffle=False)


def all_classes(classes: int, ranks: int) -> Draw:
    start, stop = shard_bounds(classes, ranks, ranks // 2)
    count = round(RATIO * classes)

    def draw(step: int) -> np.ndarray:
        drawn = np.random.default_rng((0, step)).choice(classes, count, replace=False)
        return np.sort(drawn[(drawn >= start) & (drawn < stop)])

    return draw


CONTENDERS = {
    "numpy, own part": own_part,
    "numpy, own part, unsorted": unsorted_part,
    "numpy, all classes": all_classes,
    "ours": ours,
}


def build(kind: str, classes: int, ranks: int) -> Callable[[], object]:
    draw = CONTENDERS[kind](classes, ranks)
    return lambda: [len(draw(step)) for step in range(DRAWS)]  # type: ignore[arg-type]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--classes", type=int, default=1_000_000)
    parser.add_argument("--ranks", type=int, nargs="+", default=[8, 80])
    parser.add_argument("--repeats", type=int, default=9)
    arguments = parser.parse_args()
    print(machine.description())
    for ranks in arguments.ranks:
        contenders = {kind: partial(build, kind, arguments.classes, ranks) for kind in CONTENDERS}
        results = measure.compare(contenders, repeats=arguments.repeats, threads=1)
        print(f"\nK = {arguments.classes}, r = {RATIO}, a rank of {ranks}, one draw:\n")
        print(
            spread.table(results, "numpy, own part", {"ours": 1.0}, unit=1e-3 * DRAWS, name="ms"),
            flush=True,
        )
        times = {
            kind: [time / DRAWS * 1e3 for time in result.cpus] for kind, result in results.items()
        }
        row = f"negatives, K = {arguments.classes:,}, a rank of {ranks}"
        peers = {"numpy choice": times["numpy, own part"]}
        goals.state(row, times["ours"], peers, 1.0, unit="CPU ms")


if __name__ == "__main__":
    main()
