"""Row-sparse AdamW of the sharded classifier."""

from __future__ import annotations

import pytest
import torch

from helpers.classifier_ranks import (
    NUM_CLASSES,
    classifier,
    dense,
    distance,
    problem,
    run,
)
from mlcd.classifier import RowSparseAdamW, ShardedClassifier
from mlcd.losses import cluster_loss

torch.set_num_threads(1)


# The optimizer.
def train(head: ShardedClassifier, optimizer: RowSparseAdamW, steps: range) -> None:
    """One step on a batch each."""
    for step in steps:
        embedding, _, labels = problem(seed=step)
        head(embedding, labels, step).backward()
        optimizer.step()
        optimizer.zero_grad()


def test_equals_dense_adamw_where_every_row_is_touched() -> None:
    options = {"lr": 0.01, "betas": (0.8, 0.95), "eps": 1e-6, "weight_decay": 0.1}
    head = classifier(negative_ratio=1.0)
    _, center, _ = problem()
    head.load_rows(center)
    train(head, RowSparseAdamW(head, **options), range(6))

    weight = torch.nn.Parameter(center.clone())
    optimizer = torch.optim.AdamW([weight], **options)
    for step in range(6):
        embedding, _, labels = problem(seed=step)
        optimizer.zero_grad()
        cluster_loss(
            embedding, weight, labels, kind="mlcd", scale=64.0, margin=0.3, margin_type="cosface",
            block=500,
        ).backward()  # fmt: skip
        optimizer.step()
    assert distance(head.weight.detach(), weight.detach()) < 1e-6


def plain_step(
    optimizer: RowSparseAdamW, lr: float, decay: float, betas: tuple[float, float], eps: float
) -> dict[str, torch.Tensor]:
    """Return what a step makes of the state: all rows at once, in new memory."""
    rows, value = optimizer.classifier.gradient.rows, optimizer.classifier.gradient.values
    state = {name: tensor.clone() for name, tensor in optimizer.state_tensors().items()}
    state["weight"] = optimizer.classifier.weight.detach().clone()
    state["row_step"][rows] += 1
    count = state["row_step"][rows, None].double()
    average = state["exp_avg"][rows].lerp(value, 1 - betas[0])
    square = (state["exp_avg_sq"][rows] * betas[1]).addcmul(value, value, value=1 - betas[1])
    first = 1 - betas[0] ** count
    ratio = (first / (1 - betas[1] ** count).sqrt()).float()
    root = square.sqrt() * ratio + (eps * first).float()
    row = (state["weight"][rows] * (1 - lr * decay)).addcdiv(average, root, value=-lr)
    state["exp_avg"][rows], state["exp_avg_sq"][rows], state["weight"][rows] = average, square, row
    return state


# Parts of 87,381 rows (all at once), and of 3: rows in several parts and a part that is not full.
@pytest.mark.parametrize("size", [87_381, 3])
def test_bytes_are_those_of_the_plain_step(monkeypatch, size: int) -> None:
    options = {"betas": (0.9, 0.98), "eps": 1e-8}
    head = classifier()
    head.load_rows(problem()[1])
    optimizer = RowSparseAdamW(head, lr=0.01, weight_decay=0.1, **options)
    monkeypatch.setattr(optimizer, "_part_size", lambda: size)
    for step in range(4):
        embedding, _, labels = problem(seed=step)
        head(embedding, labels, step).backward()
        expected = plain_step(optimizer, 0.01, 0.1, **options)
        optimizer.step()
        optimizer.zero_grad()
        for name, tensor in {**optimizer.state_tensors(), "weight": head.weight.detach()}.items():
            assert torch.equal(tensor, expected[name]), name


def test_a_row_seen_seldom_counts_its_own_steps() -> None:
    """Each row equals dense AdamW that was stepped only when the row was touched."""
    options = {"lr": 0.01, "betas": (0.9, 0.98), "eps": 1e-8, "weight_decay": 0.1}
    head = classifier()
    _, center, _ = problem()
    head.load_rows(center)
    optimizer = RowSparseAdamW(head, **options)
    chosen = [0, 17, 2500, 4998]
    rows = {row: torch.nn.Parameter(center[row].clone()) for row in chosen}
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
        optimizer.step()
        optimizer.zero_grad()
    assert torch.equal(optimizer.row_step, touched)
    assert {int(touched[row]) for row in chosen} != {0}
    for row, value in rows.items():
        torch.testing.assert_close(head.weight[row], value, rtol=1e-5, atol=1e-7)
    never = touched == 0
    assert never.any() and torch.equal(head.weight[never], center[never])
    assert not optimizer.exp_avg[never].any()


def test_saved_state_continues_as_if_undisturbed() -> None:
    whole = classifier()
    train(whole, RowSparseAdamW(whole, lr=0.01), range(6))

    first = classifier()
    optimizer = RowSparseAdamW(first, lr=0.01)
    train(first, optimizer, range(3))
    state = {name: tensor.clone() for name, tensor in optimizer.state_tensors().items()}
    second = classifier()
    second.load_state_dict(first.state_dict())
    resumed = RowSparseAdamW(second, lr=0.01)
    resumed.load_state_tensors(state)
    train(second, resumed, range(3, 6))
    assert torch.equal(second.weight, whole.weight)
    for wrong in ({}, {**state, "row_step": state["row_step"][1:]}):
        with pytest.raises(ValueError, match="expected"):
            resumed.load_state_tensors(wrong)


def test_clip_learning_rate_and_renormalization() -> None:
    head = classifier()
    _, _, rows = run(head)
    optimizer = RowSparseAdamW(head, lr=0.01, renormalize=True)
    norm = float(rows.norm())
    assert float(optimizer.clip(2 * norm)) == pytest.approx(norm)
    assert float(optimizer.clip(norm / 4)) == pytest.approx(norm)
    assert float(optimizer.grad_norm()) == pytest.approx(norm / 4)
    before = head.weight.detach().clone()
    touched = head.gradient.rows
    optimizer.step(lr=0.0)
    torch.testing.assert_close(
        head.weight[touched], torch.nn.functional.normalize(before[touched]), rtol=1e-5, atol=1e-6
    )
    optimizer.step()
    length = torch.linalg.vector_norm(head.weight[touched], dim=1)
    assert (length - 1).abs().max() < 1e-6
    optimizer.zero_grad()
    optimizer.step()
    assert float(optimizer.grad_norm()) == 0
    for wrong in ({"lr": -1.0}, {"lr": 1.0, "betas": (1.0, 0.9)}):
        with pytest.raises(ValueError, match="expected"):
            RowSparseAdamW(head, **wrong)
