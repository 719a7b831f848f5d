"""Samples without a label that are skipped: no loss, no gradient, and the mean is over all."""

from __future__ import annotations

import pytest
import torch

from helpers.classifier_ranks import BATCH, DIM, classifier, dense, distance, problem
from mlcd.losses import cluster_loss

torch.set_num_threads(1)
UNLABELED = [0, 3, 4, 11]


def data() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    embedding, center, labels = problem()
    labels[UNLABELED] = -1
    return embedding.requires_grad_(), center, labels


@pytest.mark.parametrize("kind", ["mlcd", "mlc", "single"])
def test_loss_and_gradients_are_those_of_the_labeled_samples(kind: str) -> None:
    embedding, center, labels = data()
    head = classifier(kind=kind, skip_unlabeled=True)
    head.load_rows(center)
    loss = head(embedding, labels, 0)
    loss.backward()
    labeled = [row for row in range(BATCH) if row not in UNLABELED]
    plain = embedding.detach()[labeled].requires_grad_()
    weight = center.clone().requires_grad_()
    expected = cluster_loss(
        plain, weight, labels[labeled], head.sampled_rows(0), kind=kind, scale=64.0, margin=0.3,
        margin_type="cosface",
    ) * (len(labeled) / BATCH)  # fmt: skip
    expected.backward()
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    assert bool((embedding.grad[UNLABELED] == 0).all())
    assert distance(embedding.grad[labeled], plain.grad) < 1e-5
    assert distance(dense(head), weight.grad) < 1e-5


def test_a_batch_without_any_label_moves_nothing() -> None:
    embedding, center, labels = data()
    head = classifier(skip_unlabeled=True)
    head.load_rows(center)
    loss = head(embedding, torch.full_like(labels, -1), 0)
    loss.backward()
    assert float(loss) == 0
    assert bool((embedding.grad == 0).all()) and bool((dense(head) == 0).all())
    assert float(head.statistics["positive_term"]) == float(head.statistics["negative_term"]) == 0
    # Otherwise it is pushed from all negatives.
    pushed = classifier()
    pushed.load_rows(center)
    assert float(pushed(embedding, torch.full_like(labels, -1), 0)) > 1


def test_micro_batches_add_up_however_the_labeled_are_divided() -> None:
    embedding, center, labels = data()
    head = classifier(skip_unlabeled=True)
    head.load_rows(center)
    whole = head(embedding, labels, 0)
    whole.backward()
    gradient, rows = embedding.grad.clone(), dense(head)
    embedding.grad = None
    head.zero_grad()
    total = 0.0
    for start in range(0, BATCH, 3):
        part = head(embedding[start : start + 3], labels[start : start + 3], 0) * (3 / BATCH)
        part.backward()
        total += float(part)
    assert total == pytest.approx(float(whole), rel=1e-6)
    assert distance(embedding.grad, gradient) < 1e-5 and distance(dense(head), rows) < 1e-5
    assert head.weight.shape[1] == DIM
