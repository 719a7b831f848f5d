"""The sharded classifier in one process; many ranks: test_ranks."""

from __future__ import annotations

import multiprocessing
import sys

import pytest
import torch

from helpers import classifier_memory
from helpers.classifier_ranks import (
    BATCH,
    DIM,
    NUM_CLASSES,
    classifier,
    dense,
    distance,
    problem,
    run,
)

torch.set_num_threads(1)


# The classifier.
@pytest.mark.parametrize("limit", [1, 3000, 1 << 16, 1 << 30])
def test_block_size_does_not_matter(limit: int) -> None:
    expected = run(classifier(memory_limit=1 << 22))
    head = classifier(memory_limit=limit)
    for value, other in zip(run(head), expected, strict=True):
        assert distance(value, other) < 1e-6


def test_only_sampled_and_positive_rows_have_a_gradient() -> None:
    head = classifier()
    run(head)
    labels = problem()[2]
    touched = torch.cat([head.sampled_rows(0), labels[labels >= 0]]).unique()
    assert torch.equal(head.gradient.rows.sort().values, touched)
    assert head.gradient.values.shape == (len(touched), DIM)
    assert head.weight.grad is None


def test_micro_batches_add_up() -> None:
    """The same negatives for all micro-batches of a step; gradients add until zero_grad."""
    _, gradient, rows = run(classifier())
    head = classifier()
    embedding, center, labels = problem()
    head.load_rows(center)
    embedding.requires_grad_()
    for part in (slice(0, 6), slice(6, 12)):
        (head(embedding[part], labels[part], step=0) / 2).backward()
    assert distance(embedding.grad, gradient) < 1e-6
    assert distance(dense(head), rows) < 1e-6
    assert len(head.gradient.rows.unique()) == len(head.gradient.rows)
    head.zero_grad()
    assert head.gradient is None


def test_statistics() -> None:
    head = classifier()
    loss, *_ = run(head)
    embedding, center, labels = problem()
    cosine = torch.nn.functional.normalize(embedding) @ torch.nn.functional.normalize(center).t()
    own = torch.zeros(BATCH, NUM_CLASSES + 1, dtype=torch.bool)
    own.scatter_(1, labels.where(labels >= 0, NUM_CLASSES), True)
    own = own[:, :-1]
    drawn = torch.zeros(NUM_CLASSES, dtype=torch.bool)
    drawn[head.sampled_rows(0)] = True
    expected = {
        "positive_similarity": cosine[own].mean(),
        "negative_similarity": cosine[~own & drawn].mean(),
    }
    for name, value in expected.items():
        assert float(head.statistics[name]) == pytest.approx(float(value), rel=1e-4)
    terms = head.statistics["positive_term"] + head.statistics["negative_term"]
    assert float(terms) == pytest.approx(float(loss), rel=1e-6)


def test_frozen_encoder_and_frozen_centers() -> None:
    embedding, _, labels = problem()
    head = classifier()
    head(embedding, labels, 0).backward()
    assert head.gradient is not None
    head.zero_grad()
    head.weight.requires_grad_(False)
    embedding.requires_grad_()
    head(embedding, labels, 0).backward()
    assert head.gradient is None and embedding.grad is not None
    with torch.no_grad():
        assert not head(embedding, labels, 0).requires_grad


def test_autocast_does_not_reach_the_products() -> None:
    expected = run(classifier())
    with torch.autocast("cpu", torch.bfloat16):
        found = run(classifier())
    for value, other in zip(found, expected, strict=True):
        assert torch.equal(value, other)


def test_a_center_changed_before_backward_is_noticed() -> None:
    head = classifier()
    embedding, _, labels = problem()
    loss = head(embedding.requires_grad_(), labels, 0)
    with torch.no_grad():
        head.weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_one_backward_for_each_forward() -> None:
    embedding, _, labels = problem()
    loss = classifier()(embedding.requires_grad_(), labels, 0)
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="one backward pass"):
        loss.backward()


def test_load_rows_and_random_rows() -> None:
    head = classifier()
    assert torch.linalg.vector_norm(head.weight, dim=1).sub(1).abs().max() < 1e-6
    assert not torch.equal(head.weight[0], head.weight[4096])
    center = problem()[1]
    head.load_rows(center.numpy())
    assert torch.equal(head.weight, center)
    with pytest.raises(ValueError, match="expected"):
        head.load_rows(center[1:])
    center[4100, 0] = float("nan")
    with pytest.raises(ValueError, match="rows 4096"):
        head.load_rows(center)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"negative_ratio": 0.0}, "negative_ratio"),
        ({"scale": 512.0}, "600"),
        ({"compute_dtype": torch.float16}, "compute_dtype"),
        ({"encoder_gradients": "mean"}, "averaged"),
        ({"kind": "other"}, "kind"),
        ({"seed": -1}, "seed"),
    ],
)
def test_settings_that_do_not_fit(changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        classifier(**changes)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self")
@pytest.mark.parametrize("ratio", [0.1, 1.0])
def test_peak_memory_is_within_the_formula(ratio: float) -> None:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        measured, bound = pool.apply(classifier_memory.measure, (ratio,))
    # The allocator rounds up, by huge pages of 2 MiB on some systems; a matrix of logits would add
    # 123 MB (12 MB at a ratio of 0.1).
    assert 0.5 * bound < measured < bound + (8 << 20)


def test_negatives_drawn_ahead_are_the_same() -> None:
    plain, ahead = classifier(), classifier()
    ahead.draws_ahead = True
    # A step twice (micro-batches), one left out, one before: only what was asked for comes.
    for step in (0, 0, 1, 5, 2, 3):
        assert torch.equal(ahead.sampled_rows(step), plain.sampled_rows(step))
        assert ahead._ahead is not None and ahead._ahead[0] == step + 1
    assert plain._ahead is None
