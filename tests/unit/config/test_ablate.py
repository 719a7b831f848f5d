"""The grid of an ablation: its cells, their names, what is refused."""

from __future__ import annotations

import pytest

from mlcd.config import Ablate, Cell, Config, validate
from mlcd.utils.errors import UserError

OWN = Cell("mlcd", 4, 0.5, 256)


def test_a_grid_of_nothing_is_the_runs_own_cell():
    assert Ablate().runs(OWN) == []
    assert Ablate(grids=[{"seeds": [3, 1]}]).runs(OWN) == [(OWN, 3), (OWN, 1)]
    assert Config(label={"top": 8}).own_cell == Cell("mlcd", 8, 0.5, 256)
    assert Config(train={"loss": "single"}).own_cell.l == 1
    assert Config(train={"positives": 2}).own_cell.l == 2


def test_every_combination_once_and_equal_losses_are_one_cell():
    grid = {"loss": ["mlcd", "mlc", "single"], "l": [1, 8], "r": [0.1, 1.0], "seeds": [0]}
    names = [cell.name for cell, _ in Ablate(grids=[grid]).runs(OWN)]
    each = ["mlcd-l1-r{}-k256", "mlcd-l8-r{}-k256", "single-l1-r{}-k256", "mlc-l8-r{}-k256"]
    assert names == [name.format(r) for r in ("0.1", "1") for name in each]
    more = Ablate(grids=[grid, {"l": [8], "r": [0.1], "seeds": [0, 1]}]).runs(OWN)
    assert len(more) == 8 + 1 and more[-1] == (Cell("mlcd", 8, 0.1, 256), 1)


def test_a_cell_is_found_again_by_its_name():
    for cell in (
        Cell("mlcd", 8, 0.1, 1_000_000),
        Cell("single", 1, 1.0, 2),
        Cell("mlc", 4, 1e-5, 9),
    ):
        assert Cell.parse(cell.name) == cell
    for name in ("mlcd-l8-r0.1", "mlcdx-l8-r0.1-k2", "../mlcd-l8-r0.1-k2", "mlcd-l8-r0.1-k2/x"):
        with pytest.raises(ValueError, match="names no cell"):
            Cell.parse(name)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"ablate": {"grids": [{"l": [300]}]}}, "l = 300 labels of 256 clusters"),
        ({"ablate": {"grids": [{"r": [0.0]}]}}, r"ablate.grids.0.r: expected shares of more than"),
        ({"ablate": {"grids": [{"seeds": [1, 1]}]}}, r"seeds: a value stands twice in \[1, 1\]"),
        ({"ablate": {"grids": [{"seeds": []}]}}, "seeds"),
        ({"ablate": {"grids": [{"k": [0]}]}}, "k: expected values of at least 1, got 0"),
        ({"ablate": {"grids": [{"top": [1]}]}}, "unknown key"),
        ({"ablate": {"grids": [{}]}, "evaluate": {"datasets": []}}, "give evaluate.datasets"),
        ({"train": {"positives": 5}}, "train.positives: 5 of 4 labels per image"),
    ],
)
def test_a_wrong_grid_is_refused_by_key(values, message):
    with pytest.raises(UserError, match=message):
        validate(Config, values, "config.yaml")
