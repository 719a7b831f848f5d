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
