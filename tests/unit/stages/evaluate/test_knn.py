"""The k-NN vote, held to a plain loop."""

from __future__ import annotations

import numpy as np
import torch

from helpers.evaluate_runs import planted
from mlcd.stages.evaluate import knn


def plain_knn(train, labels, test, k, temperature):
    """The DINO vote, one image and one neighbor at a time."""
    unit = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (train, test)]
    predicted = []
    for row in unit[1]:
        similarity = unit[0] @ row
        votes = np.zeros(labels.max() + 1)
        for neighbor in np.argsort(-similarity)[:k]:
            votes[labels[neighbor]] += np.exp(similarity[neighbor] / temperature)
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
    # The weights matter: at a high temperature every neighbor counts the same.
    flat = knn.predict(
        torch.from_numpy(train), torch.from_numpy(labels), torch.from_numpy(test), [20], 1e6
    )
    assert flat[20].tolist() != found[20].tolist()


def test_a_low_temperature_does_not_overflow():
    """exp(cosine / temperature) is beyond float32 there, and so would be every class's vote."""
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((5, 16))
    labels = np.repeat(np.arange(5), 40)
    rows = centers[labels] + 0.05 * rng.standard_normal((200, 16)) + 4
    train, test = torch.from_numpy(rows).float(), torch.from_numpy(rows + 0.01).float()
    for temperature in (0.07, 0.0113, 0.005, 1e-4):
        found = knn.predict(train, torch.from_numpy(labels), test, [50], temperature)[50]
        assert found.tolist() == labels.tolist()
