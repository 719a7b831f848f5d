"""Numbers that are compared: blocks of centers, and what is no number."""

from __future__ import annotations

import numpy as np
import pytest

from mlcd.commands.audit import nearness, numbers


@pytest.mark.parametrize("block", [3, 7, 100])
def test_blocks_of_centers_give_what_all_at_once_give(monkeypatch, block):
    rng = np.random.default_rng(0)
    rows, centers = rng.standard_normal((9, 5)), rng.standard_normal((40, 5)).astype(np.float32)
    monkeypatch.setattr(numbers, "_CENTERS", block)
    wanted = -np.sort(-(rows @ centers.T.astype(np.float64)), axis=1)[:, :4]
    np.testing.assert_allclose(numbers._best(rows, centers, 4), wanted, rtol=0, atol=1e-12)


def test_nan_agrees_with_nan_alone():
    nan = float("nan")
    assert nearness._values({"a": nan, "b": 1.0}, {"a": nan, "b": 1.0 + 1e-6})[0] == nearness.CLOSE
    assert nearness._values({"a": nan}, {"a": 0.5})[0] == nearness.DIFFERENT
    assert nearness._values({"a": 0.5}, {"a": nan})[0] == nearness.DIFFERENT
    assert nearness._values({"a": nan, "b": 1.0}, {"a": nan, "b": 2.0})[0] == nearness.DIFFERENT
