"""The sharded classifier and its optimiser in one process; many ranks: test_classifier_ranks."""

from __future__ import annotations

import multiprocessing
import sys

import classifier_memory
import numpy as np
import pytest
import torch
from classifier_ranks import BATCH, DIM, NUM_CLASSES, classifier, dense, distance, problem

from mlcd.classifier import NegativeSampler, RowSparseAdamW, ShardedClassifier, shard_bounds
from mlcd.losses import cluster_loss

torch.set_num_threads(1)


def run(head: ShardedClassifier, step: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Forward and backward; return loss, embedding gradient, dense gradient of the centres."""
    embedding, centre, labels = problem()
    head.load_rows(centre)
    embedding.requires_grad_()
    loss = head(embedding, labels, step)
    loss.backward()
    return loss.detach(), embedding.grad, dense(head)


# The sampler.


@pytest.mark.parametrize(("classes", "count"), [(1, 1), (10, 3), (4096, 100), (20_001, 6_000)])
def test_exactly_that_many_distinct_classes(classes: int, count: int) -> None:
    sampler = NegativeSampler(classes, count, seed=1)
    for step in range(5):
        drawn = sampler.draw(step, 0, classes)
        assert len(drawn) == count and (np.diff(drawn) > 0).all()
        assert drawn.min() >= 0 and drawn.max() < classes


def test_ranges_are_parts_of_one_set() -> None:
    sampler = NegativeSampler(20_001, 2_000, seed=1)
    whole = sampler.draw(3, 0, 20_001)
    for world in (2, 3, 7, 50):
        parts = [sampler.draw(3, *shard_bounds(20_001, world, rank)) for rank in range(world)]
        assert np.array_equal(np.concatenate(parts), whole)
    assert not np.array_equal(whole, sampler.draw(4, 0, 20_001))
    assert not np.array_equal(whole, NegativeSampler(20_001, 2_000, seed=2).draw(3, 0, 20_001))


def test_every_class_is_drawn_as_often_as_another() -> None:
    """Chi-square of the number of times each class, and each pair of neighbours, was drawn."""
    classes, count, steps = 4200, 1050, 400  # The second block holds 104 classes.
    sampler = NegativeSampler(classes, count, seed=0)
    drawn = np.zeros((steps, classes), dtype=bool)
    for step in range(steps):
        drawn[step, sampler.draw(step, 0, classes)] = True
    share = count / classes
    for often, chance in (
        (drawn.sum(0), share),
        ((drawn[:, :-1] & drawn[:, 1:]).sum(0), share * (count - 1) / (classes - 1)),
    ):
        statistic = ((often - steps * chance) ** 2 / (steps * chance * (1 - chance))).sum()
        freedom = len(often)
        assert abs(statistic - freedom) < 5 * np.sqrt(2 * freedom)
    # The share of the small block varies as a hypergeometric draw does, neither more nor less.
    small = drawn[:, 4096:].sum(1)
    variance = 104 * share * (1 - share) * (classes - 104) / (classes - 1)
    assert abs(small.mean() - 104 * share) < 5 * np.sqrt(variance / steps)
    assert 0.7 < small.var() / variance < 1.4


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
    embedding, centre, labels = problem()
    head.load_rows(centre)
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
    embedding, centre, labels = problem()
    cosine = torch.nn.functional.normalize(embedding) @ torch.nn.functional.normalize(centre).t()
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


def test_frozen_encoder_and_frozen_centres() -> None:
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


def test_a_centre_changed_before_backward_is_noticed() -> None:
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
    centre = problem()[1]
    head.load_rows(centre.numpy())
    assert torch.equal(head.weight, centre)
    with pytest.raises(ValueError, match="expected"):
        head.load_rows(centre[1:])
    centre[4100, 0] = float("nan")
    with pytest.raises(ValueError, match="rows 4096"):
        head.load_rows(centre)


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


# The optimiser.


def train(head: ShardedClassifier, optimiser: RowSparseAdamW, steps: range) -> None:
    """One step on a batch each."""
    for step in steps:
        embedding, _, labels = problem(seed=step)
        head(embedding, labels, step).backward()
        optimiser.step()
        optimiser.zero_grad()


def test_equals_dense_adamw_where_every_row_is_touched() -> None:
    options = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    head = classifier(negative_ratio=1.0)
    _, centre, _ = problem()
    head.load_rows(centre)
    train(head, RowSparseAdamW(head, **options), range(6))

    weight = torch.nn.Parameter(centre.clone())
    optimiser = torch.optim.AdamW([weight], **options)
    for step in range(6):
        embedding, _, labels = problem(seed=step)
        optimiser.zero_grad()
        cluster_loss(
            embedding, weight, labels, kind="mlcd", scale=64.0, margin=0.3, margin_type="cosface",
            block=500,
        ).backward()  # fmt: skip
        optimiser.step()
    assert distance(head.weight.detach(), weight.detach()) < 1e-6


def test_a_row_seen_seldom_counts_its_own_steps() -> None:
    """Each row equals dense AdamW that was stepped only when the row was touched."""
    options = {"lr": 0.01, "betas": (0.9, 0.98), "eps": 1e-8, "weight_decay": 0.1}
    head = classifier()
    _, centre, _ = problem()
    head.load_rows(centre)
    optimiser = RowSparseAdamW(head, **options)
    chosen = [0, 17, 2500, 4998]
    rows = {row: torch.nn.Parameter(centre[row].clone()) for row in chosen}
    single = {row: torch.optim.AdamW([value], **options) for row, value in rows.items()}
    touched = torch.zeros(NUM_CLASSES, dtype=torch.int64)
    for step in range(40):
        embedding, _, labels = problem(seed=step)
        head(embedding, labels, step).backward()
        gradient = dense(head)
        touched[head.gradient.rows] += 1
        for row in set(chosen) & set(head.gradient.rows.tolist()):
            rows[row].grad = gradient[row]
            single[row].step()
        optimiser.step()
        optimiser.zero_grad()
    assert torch.equal(optimiser.row_step, touched)
    assert {int(touched[row]) for row in chosen} != {0}
    for row, value in rows.items():
        torch.testing.assert_close(head.weight[row], value, rtol=1e-5, atol=1e-7)
    never = touched == 0
    assert never.any() and torch.equal(head.weight[never], centre[never])
    assert not optimiser.exp_avg[never].any()


def test_saved_state_continues_as_if_undisturbed() -> None:
    whole = classifier()
    train(whole, RowSparseAdamW(whole, lr=0.01), range(6))

    first = classifier()
    optimiser = RowSparseAdamW(first, lr=0.01)
    train(first, optimiser, range(3))
    state = {name: tensor.clone() for name, tensor in optimiser.state_tensors().items()}
    second = classifier()
    second.load_state_dict(first.state_dict())
    resumed = RowSparseAdamW(second, lr=0.01)
    resumed.load_state_tensors(state)
    train(second, resumed, range(3, 6))
    assert torch.equal(second.weight, whole.weight)
    for wrong in ({}, {**state, "row_step": state["row_step"][1:]}):
        with pytest.raises(ValueError, match="expected"):
            resumed.load_state_tensors(wrong)


def test_clip_learning_rate_and_renormalisation() -> None:
    head = classifier()
    _, _, rows = run(head)
    optimiser = RowSparseAdamW(head, lr=0.01, renormalize=True)
    norm = float(rows.norm())
    assert float(optimiser.clip(2 * norm)) == pytest.approx(norm)
    assert float(optimiser.clip(norm / 4)) == pytest.approx(norm)
    assert float(optimiser.grad_norm()) == pytest.approx(norm / 4)
    before = head.weight.detach().clone()
    touched = head.gradient.rows
    optimiser.step(lr=0.0)
    torch.testing.assert_close(
        head.weight[touched], torch.nn.functional.normalize(before[touched]), rtol=1e-5, atol=1e-6
    )
    optimiser.step()
    length = torch.linalg.vector_norm(head.weight[touched], dim=1)
    assert (length - 1).abs().max() < 1e-6
    optimiser.zero_grad()
    optimiser.step()
    assert float(optimiser.grad_norm()) == 0
    for wrong in ({"lr": -1.0}, {"lr": 1.0, "betas": (1.0, 0.9)}):
        with pytest.raises(ValueError, match="expected"):
            RowSparseAdamW(head, **wrong)
