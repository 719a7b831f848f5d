"""docs/ablation.svg is what its script draws of the page's own table."""

from __future__ import annotations

import importlib.util
from types import ModuleType

import matplotlib
import pytest

from helpers.paths import ROOT

IMAGE = ROOT / "docs" / "ablation.svg"


@pytest.fixture(scope="module")
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("draw_ablation", ROOT / "docs/draw_ablation.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_all_cells_of_the_page_are_read(script):
    rows = list(script.rows(script.PAGE.read_text(encoding="utf-8")))
    # Two baselines and eight cells, two metrics each.
    assert len(rows) == 2 * (2 + 8)
    cell = next(
        row for row in rows if row[:5] == ("mlcd-l8-r0.1-k2000", "mlcd", "8", "0.1", "2000")
    )
    assert cell[6:10] == ("knn_20", "5", "0.8198", "0.0038")


def test_the_image_of_the_ablation_is_drawn_by_its_script(script, tmp_path):
    pinned = (ROOT / "constraints" / "cpu.txt").read_text(encoding="utf-8").split()
    if f"matplotlib=={matplotlib.__version__}" not in pinned:
        pytest.skip("lines of another matplotlib differ in their digits")
    script.draw(tmp_path / "drawn.svg")
    assert (tmp_path / "drawn.svg").read_bytes() == IMAGE.read_bytes()
