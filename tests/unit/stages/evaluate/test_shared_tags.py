"""Retrieval by tags in common, held to a plain loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mlcd.config.labeled import Dataset
from mlcd.stages.evaluate import shared_tags


def test_shares_are_the_plain_loop(monkeypatch):
    rng = np.random.default_rng(0)
    tags = rng.random((40, 6)) < 0.3
    tags[np.arange(40), rng.integers(0, 6, 40)] = True
    group = np.concatenate([np.arange(34), rng.integers(0, 34, 6)])
    rows = rng.standard_normal((40, 8)) + 2 * tags @ rng.standard_normal((6, 8))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    totals, chance = {1: 0.0, 5: 0.0, 60: 0.0}, 0.0
    for query in range(40):
        others = [place for place in range(40) if group[place] != group[query]]
        shares = {p: (tags[p] & tags[query]).sum() / tags[query].sum() for p in others}
        others.sort(key=lambda place: -float(unit[place] @ unit[query]))
        for k in totals:
            totals[k] += float(np.mean([shares[place] for place in others[:k]]))
        chance += float(np.mean(list(shares.values())))
    monkeypatch.setattr(shared_tags, "_BLOCK", 40 * 7)
    columns = [torch.from_numpy(column) for column in (rows, tags, group)]
    found, by_chance, counted = shared_tags.shared(*columns, [1, 5, 60])
    assert counted == 40
    assert found == {k: pytest.approx(total / 40) for k, total in totals.items()}
    assert by_chance == pytest.approx(chance / 40)
    assert found[1] > found[60] == pytest.approx(by_chance)


def test_with_one_tag_it_is_precision():
    rows = torch.tensor([[1.0, 0], [1, 0.1], [0, 1], [0.1, 1]])
    tags = torch.tensor([[1, 0], [1, 0], [0, 1], [1, 0]]).bool()
    found, _, _ = shared_tags.shared(rows, tags, torch.arange(4), [1, 3])
    assert found == {1: pytest.approx(2 / 4), 3: pytest.approx((2 / 3 + 2 / 3 + 0 + 2 / 3) / 4)}


def test_a_query_without_an_answer_is_left_out():
    rows, tags = torch.eye(2), torch.ones(2, 1).bool()
    assert shared_tags.shared(rows, tags, torch.zeros(2), [1]) == ({1: 0.0}, 0.0, 0)


def test_the_task_needs_tags():
    with pytest.raises(ValueError, match="tag_retrieval on mine needs tags; set tags_field"):
        Dataset(name="mine", path="x.tar", tasks=["tag_retrieval"])
