"""Loss and classifier, forward and backward, against the two ways in which others write it.

python benchmarks/loss.py [--case sampled|full] [--repeats 5] [--threads 1]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import goals
import measure
import torch
import torch.nn.functional as F
from torch import Tensor

from mlcd.classifier import ShardedClassifier
from mlcd.losses import cluster_loss

NUM_CLASSES, DIM, BATCH, LABELS = 100_000, 512, 1024, 8
SETTINGS = {"scale": 64.0, "margin": 0.3, "margin_type": "cosface"}


def problem() -> tuple[Tensor, Tensor]:
    """Return embeddings [B, d] that need a gradient and labels [B, l]."""
    random = torch.Generator().manual_seed(0)
    embedding = torch.randn(BATCH, DIM, generator=random).requires_grad_()
    return embedding, torch.randint(NUM_CLASSES, (BATCH, LABELS), generator=random)


def mlcd(ratio: float) -> Callable[[], object]:
    """This project's classifier."""
    classifier = ShardedClassifier(
        NUM_CLASSES, DIM, kind="mlcd", negative_ratio=ratio, seed=0, **SETTINGS
    )
    embedding, labels = problem()
    steps = iter(range(1_000_000))

    def call() -> None:
        classifier(embedding, labels, next(steps)).backward()
        classifier.zero_grad()
        embedding.grad = None

    return call


def eight_softmaxes(ratio: float) -> Callable[[], object]:
    """The mean of one sampled softmax per label slot, as in PartialFC: each slot keeps the batch's
    positives, fills up with random classes, and leaves a dense gradient.
    """
    weight = torch.randn(NUM_CLASSES, DIM).requires_grad_()
    embedding, labels = problem()
    count = round(ratio * NUM_CLASSES)

    def one(target: Tensor) -> Tensor:
        positive = target.unique()
        chance = torch.rand(NUM_CLASSES)
        chance[positive] = 2.0
        index = chance.topk(count).indices.sort().values
        target = torch.searchsorted(index, target)
        logits = F.linear(F.normalize(embedding), F.normalize(weight[index])).clamp(-1, 1)
        margin = torch.zeros_like(logits)
        margin.scatter_(1, target[:, None], SETTINGS["margin"])
        return F.cross_entropy((logits - margin) * SETTINGS["scale"], target)

    def call() -> None:
        torch.stack([one(target) for target in labels.t().contiguous()]).mean().backward()
        weight.grad = embedding.grad = None

    return call


def plain_autograd() -> Callable[[], object]:
    """Eq. 5 over all classes, written as it stands."""
    weight = torch.randn(NUM_CLASSES, DIM).requires_grad_()
    embedding, labels = problem()

    def call() -> None:
        cluster_loss(embedding, weight, labels, kind="mlcd", **SETTINGS).backward()
        weight.grad = embedding.grad = None

    return call


CASES = {
    "sampled": {
        "eight sampled softmaxes, r = 0.1": partial(eight_softmaxes, 0.1),
        "ShardedClassifier, r = 0.1": partial(mlcd, 0.1),
    },
    "full": {
        "plain autograd of Eq. 5, r = 1": plain_autograd,
        "ShardedClassifier, r = 1": partial(mlcd, 1.0),
    },
}


#: The greatest share of the peer's time that ours may take.
GOALS = {"sampled": 1 / 6, "full": 1.15}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", choices=[*CASES, "all"], default="all")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    print(f"K = {NUM_CLASSES}, d = {DIM}, B = {BATCH}, l = {LABELS}, {arguments.threads} threads")
    for case, contenders in CASES.items():
        if arguments.case in (case, "all"):
            results = measure.compare(
                contenders, repeats=arguments.repeats, threads=arguments.threads
            )
            print(measure.table(results), flush=True)
            peer, ours = contenders
            row = f"{ours}, forward and backward"
            goals.state(row, results[ours].cpus, {peer: results[peer].cpus}, GOALS[case])


if __name__ == "__main__":
    main()
