"""What is no number is near to nothing: no comparison of NaN holds, so none may let it pass."""

from __future__ import annotations

import numpy as np
from safetensors.numpy import save_file

from mlcd.commands.audit import nearness


def test_a_score_that_is_no_number_differs(tmp_path):
    nan = float("nan")
    assert nearness._values({"knn": nan, "a": 1}, {"knn": 0.5, "a": 1})[0] == nearness.DIFFERENT
    assert nearness._values({"knn": nan}, {"knn": float("nan")})[0] != nearness.DIFFERENT


def test_weights_that_are_no_numbers_hide_no_others(tmp_path):
    old, new = tmp_path / "old.safetensors", tmp_path / "new.safetensors"
    save_file({"w": np.array([1, np.nan, 3], np.float32)}, old)
    save_file({"w": np.array([1, 2, 3], np.float32)}, new)
    assert nearness.compared(old, new)[0] == nearness.DIFFERENT
    save_file({"w": np.array([9, np.nan, 3], np.float32)}, new)
    assert nearness.compared(old, new)[0] == nearness.DIFFERENT
