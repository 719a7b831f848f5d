"""The report's page of an ablation."""

from __future__ import annotations

import pytest

from helpers.ablate_runs import ablation_words, table
from mlcd.cli import main


@pytest.fixture
def ablation(tmp_path):
    """A finished grid of four cells and two seeds, with baselines; the words of the command."""
    return ablation_words(tmp_path)


def test_the_page_says_which_orders_hold(ablation, tmp_path):
    table(ablation)
    page = tmp_path / "page.html"
    words = ["--ablation", str(tmp_path / "ablate" / "table.csv"),
             "--orders", str(tmp_path / "ablate" / "orders.csv")]  # fmt: skip
    assert main(["report", "--part", "ablate", *words, "--output", str(page)]) == 0
    html = page.read_text()
    # Two metrics: mlcd over mlc holds, over l = 1 is reversed, over single stays open.
    assert "Of 6 orders that the paper reports, 2 hold here, 2 are reversed, 2 stay open" in html
    assert "mlcd, l = 8, r = 0.1" in html and "+0.030 ± 0.006: first is better" in html
    (tmp_path / "ablate" / "table.csv").write_text("a,b\n1,2\n")
    assert main(["report", "--part", "ablate", *words, "--output", str(page)]) == 2
