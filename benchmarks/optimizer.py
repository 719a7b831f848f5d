"""Row-sparse AdamW at r = 0.1 against torch.optim.AdamW over all centers.

python benchmarks/optimizer.py [--repeats 9] [--threads 1]

The goal is half of the time of torch's fused kernel over all rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import goals
import machine
import measure
import spread
import torch

from mlcd.classifier import RowGradient, RowSparseAdamW, ShardedClassifier

NUM_CLASSES, DIM, BATCH, LABELS, RATIO = 100_000, 512, 1024, 8, 0.1


def row_sparse() -> Callable[[], object]:
    """The rows of a step: those sampled, and the batch's positives."""
    classifier = ShardedClassifier(
        NUM_CLASSES, DIM, kind="mlcd", scale=64.0, margin=0.3, margin_type="cosface",
        negative_ratio=RATIO, seed=0,
    )  # fmt: skip
    optimizer = RowSparseAdamW(classifier, lr=1e-3, weight_decay=0.05)
    positive = torch.randint(NUM_CLASSES, (BATCH * LABELS,))
    sampled = classifier.sampled_rows(0)
    extra = positive.unique()
    rows = torch.cat([sampled, extra[~torch.isin(extra, sampled)]])
    classifier.gradient = RowGradient(rows, torch.randn(len(rows), DIM))
    return optimizer.step


def dense(**options: bool) -> Callable[[], object]:
    """Every row, with a gradient that is mostly zeros."""
    weight = torch.nn.Parameter(torch.randn(NUM_CLASSES, DIM))
    weight.grad = torch.randn(NUM_CLASSES, DIM)
    return torch.optim.AdamW([weight], lr=1e-3, weight_decay=0.05, **options).step


CONTENDERS = {
    "torch.optim.AdamW": dense,
    "torch.optim.AdamW(fused=True)": partial(dense, fused=True),
    "RowSparseAdamW, r = 0.1": row_sparse,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    print(machine.description())
    print(f"K = {NUM_CLASSES}, d = {DIM}, {arguments.threads} threads")
    results = measure.compare(CONTENDERS, repeats=arguments.repeats, threads=arguments.threads)
    print(measure.table(results), end="\n\n")
    ours, peer = list(CONTENDERS)[-1], "torch.optim.AdamW(fused=True)"
    print(spread.table(results, peer, {ours: 0.5}, unit=1e-3, name="ms"))
    row = f"row-sparse AdamW, K = {NUM_CLASSES:,}"
    goals.state(row, results[ours].cpus, {"torch, fused": results[peer].cpus}, 0.5)


if __name__ == "__main__":
    main()
