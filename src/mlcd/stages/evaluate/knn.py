"""Weighted k-nearest-neighbor classification by the DINO protocol (arXiv 2104.14294)."""

from __future__ import annotations

import torch
from torch.nn import functional

#: Similarities held at once.
_BLOCK = 1 << 26
#: Below this temperature the sum of a thousand votes may be beyond float32.
_LEAST = 1 / 80


def predict(
    train: torch.Tensor,
    labels: torch.Tensor,
    test: torch.Tensor,
    ks: list[int],
    temperature: float,
) -> dict[int, torch.Tensor]:
    """Return k → predicted class int64 [m] of the rows of `test` [m, d], for every k of `ks`.

    `train` is float [n, d], `labels` int64 [n] of classes from 0. Rows are L2-normalized here; each
    of the k most similar train rows votes for its class with weight exp(cosine / temperature); the
    smallest of equally voted classes wins. No k may exceed n.
    """
    train, test = functional.normalize(train, dim=1), functional.normalize(test, dim=1)
    classes = int(labels.max()) + 1
    predicted: dict[int, list[torch.Tensor]] = {k: [] for k in ks}
    for block in test.split(max(1, _BLOCK // len(train))):
        similarity, nearest = (block @ train.T).topk(max(ks), dim=1)
        voters = labels[nearest]
        # Votes count against one another: a factor on all of a row changes none.
        least = similarity[:, :1] if temperature < _LEAST else 0.0
        weight = torch.exp((similarity - least) / temperature)
        for k in ks:
            votes = torch.zeros(len(block), classes, device=test.device)
            votes.scatter_add_(1, voters[:, :k], weight[:, :k])
            predicted[k].append(votes.argmax(1))
    return {k: torch.cat(parts) for k, parts in predicted.items()}
