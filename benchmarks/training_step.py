"""A whole training step of ViT-S/16 at 224 px with 100,000 classes over the encoder's alone.

python benchmarks/training_step.py [--repeats 5] [--threads 1]

Encoder only: forward, backward of the embeddings' sum, AdamW. Whole: the same encoder step, with
the classifier's forward and backward between, and its optimizer step after. One process, r = 0.1.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import measure
import torch

import mlcd.utils.compat  # noqa: F401
from mlcd.classifier import RowSparseAdamW, ShardedClassifier

BATCH, DIM, NUM_CLASSES, LABELS, RATIO = 16, 512, 100_000, 8, 0.1


def step(with_classifier: bool) -> Callable[[], object]:
    """Build encoder, classifier and a batch of noise; return one training step."""
    import timm

    torch.manual_seed(0)
    encoder = timm.create_model("vit_small_patch16_224", num_classes=DIM)
    optimizer = torch.optim.AdamW(encoder.parameters(), lr=1e-4)
    pixels = torch.randn(BATCH, 3, 224, 224)
    labels = torch.randint(NUM_CLASSES, (BATCH, LABELS))
    steps = iter(range(1_000_000))
    if with_classifier:
        classifier = ShardedClassifier(
            NUM_CLASSES, DIM, kind="mlcd", scale=64.0, margin=0.3, margin_type="cosface",
            negative_ratio=RATIO, seed=0,
        )  # fmt: skip
        centers = RowSparseAdamW(classifier, lr=1e-4)

    def call() -> None:
        embedding = encoder(pixels)
        if with_classifier:
            classifier(embedding, labels, next(steps)).backward()
            centers.step()
            centers.zero_grad()
        else:
            embedding.sum().backward()
        optimizer.step()
        optimizer.zero_grad()

    return call


CONTENDERS = {"encoder only": partial(step, False), "with classifier": partial(step, True)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    print(f"ViT-S/16, B = {BATCH}, K = {NUM_CLASSES}, r = {RATIO}, {arguments.threads} threads")
    results = measure.compare(CONTENDERS, repeats=arguments.repeats, threads=arguments.threads)
    print(measure.table(results))


if __name__ == "__main__":
    main()
