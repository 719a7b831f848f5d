"""k-NN, linear probe and mAP held to plain references: numpy loops and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.multiclass import OneVsRestClassifier

from mlcd.evaluate import knn, probe
from mlcd.evaluate.scores import mean_average_precision


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)


def planted(n: int, d: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Rows around one centre a class, stretched unevenly as real features are."""
    rng = np.random.default_rng(seed)
    label = np.concatenate([np.arange(classes), rng.integers(0, classes, n - classes)])
    centres = rng.standard_normal((classes, d))
    x = (centres[label] + rng.standard_normal((n, d))) * np.exp(rng.standard_normal(d))
    return x.astype(np.float32), label


def plain_knn(train, labels, test, k, temperature):
    """The DINO vote, one picture and one neighbour at a time."""
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (train, test)]
    predicted = []
    for row in unit[1]:
        similarity = unit[0] @ row
        votes = np.zeros(labels.max() + 1)
        for neighbour in np.argsort(-similarity)[:k]:
            votes[labels[neighbour]] += np.exp(similarity[neighbour] / temperature)
        predicted.append(int(np.argmax(votes)))
    return predicted


def test_knn_is_the_plain_vote(monkeypatch):
    x, y = planted(260, 12, 7)
    train, labels, test = x[:200], y[:200], x[200:]
    monkeypatch.setattr(knn, "_BLOCK", 200 * 16)  # several blocks
    found = knn.predict(
        torch.from_numpy(train), torch.from_numpy(labels), torch.from_numpy(test), [1, 5, 20], 0.07
    )
    for k, predicted in found.items():
        assert predicted.tolist() == plain_knn(train, labels, test, k, 0.07)
    # The weights matter: at a high temperature every neighbour counts the same.
    flat = knn.predict(
        torch.from_numpy(train), torch.from_numpy(labels), torch.from_numpy(test), [20], 1e6
    )
    assert flat[20].tolist() != found[20].tolist()


def objective(weight, bias, x, y, c) -> float:
    """scikit-learn's objective over C n, in float64."""
    logits = x.astype(np.float64) @ weight + bias
    top = logits.max(1, keepdims=True)
    loss = np.log(np.exp(logits - top).sum(1)) + top[:, 0] - logits[np.arange(len(y)), y]
    return loss.mean() + (weight**2).sum() / (2 * c * len(y))


@pytest.mark.parametrize("c", [1e-3, 0.1, 10.0])
def test_the_probe_finds_scikit_learns_minimum(c):
    x, y = planted(400, 30, 6)
    rows = probe.Scale.of(torch.from_numpy(x))(torch.from_numpy(x))
    ours = probe.fit(probe.Rows(rows), torch.from_numpy(y), c, 1000)
    theirs = LogisticRegression(C=c, max_iter=5000, tol=1e-8).fit(rows.double().numpy(), y)
    found = objective(ours.weight.double().numpy(), ours.bias.double().numpy(), rows.numpy(), y, c)
    best = objective(theirs.coef_.T, theirs.intercept_, rows.numpy(), y, c)
    assert abs(found - best) < 1e-4
    assert ours.loss == pytest.approx(found, abs=1e-5)
    agree = ours.logits(rows).argmax(1).numpy() == theirs.predict(rows.double().numpy())
    assert agree.mean() >= 0.995


def test_the_tag_probe_is_one_against_rest():
    x, _ = planted(300, 20, 4)
    rng = np.random.default_rng(3)
    tags = (x @ rng.standard_normal((20, 5)) + rng.standard_normal((300, 5)) > 1.5).astype(int)
    rows = probe.Scale.of(torch.from_numpy(x))(torch.from_numpy(x))
    ours = probe.fit(probe.Rows(rows), torch.from_numpy(tags).float(), 0.1, 1000)
    theirs = OneVsRestClassifier(LogisticRegression(C=0.1, max_iter=5000, tol=1e-8))
    expected = theirs.fit(rows.double().numpy(), tags).decision_function(rows.double().numpy())
    assert np.abs(ours.logits(rows).numpy() - expected).max() < 0.02
    score = mean_average_precision(tags.astype(bool), ours.logits(rows).numpy())
    each = [average_precision_score(tags[:, tag], expected[:, tag]) for tag in range(5)]
    assert score == pytest.approx(np.mean(each), abs=1e-3)


def test_a_start_saves_iterations_and_leaves_the_minimum():
    x, y = planted(300, 20, 5)
    rows = probe.Rows(probe.Scale.of(torch.from_numpy(x))(torch.from_numpy(x)))
    cold = probe.fit(rows, torch.from_numpy(y), 1.0, 1000)
    warm = probe.fit(rows, torch.from_numpy(y), 1.0, 1000, start=cold)
    assert warm.iterations < cold.iterations / 2
    assert warm.loss == pytest.approx(cold.loss, abs=1e-5)


def test_c_is_the_best_on_the_rows_held_back():
    x, y = planted(400, 40, 8)
    x = x / x.std()
    rows, targets = torch.from_numpy(x), torch.from_numpy(y)
    held = torch.from_numpy(probe.validation_rows(np.arange(400), 0.25, 0, y))

    def score(fit, rows, targets):
        return float((fit.logits(rows).argmax(1) == targets).float().mean())

    candidates = [10.0, 1e-4, 0.01]
    chosen = probe.choose(rows, targets, held, candidates, 500, score)
    by_hand = {}
    for c in candidates:
        sk = LogisticRegression(C=c, max_iter=5000, tol=1e-8).fit(
            x[~held.numpy()], y[~held.numpy()]
        )
        by_hand[c] = sk.score(x[held.numpy()], y[held.numpy()])
    assert chosen.scores == pytest.approx(by_hand, abs=0.011)  # one picture of a hundred
    assert chosen.c == max(by_hand, key=by_hand.get)


def test_validation_keeps_groups_together_and_leaves_every_class_something_to_fit():
    rng = np.random.default_rng(0)
    group, label = rng.integers(0, 60, 200), rng.integers(0, 5, 200)
    group[:3], label[:3] = [900, 901, 901], [7, 8, 8]  # classes of one group
    for seed in range(40):
        held = probe.validation_rows(group, 0.3, seed, label)
        assert not set(group[held]) & set(group[~held])
        assert set(label[~held]) == set(label)
        assert 0.1 < held.mean() < 0.5
    assert np.array_equal(
        probe.validation_rows(group, 0.3, 1, label), probe.validation_rows(group, 0.3, 1, label)
    )
    one, other = (probe.validation_rows(group, 0.3, seed, label) for seed in (1, 2))
    assert not np.array_equal(one, other)
