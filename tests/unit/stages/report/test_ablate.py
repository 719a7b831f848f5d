"""The report's page of an ablation."""

from __future__ import annotations

import pytest

from helpers.ablate_runs import ablation_words, table
from helpers.builders import csv_table
from helpers.report_stores import cells as cells_of
from mlcd.cli import main
from mlcd.config import Report
from mlcd.stages.report.ablate import draw


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


def test_lower_scores_can_be_better_and_spread_is_no_evidence(tmp_path):
    first, second = "mlcd-l8-r0.1-k64", "single-l1-r0.1-k64"
    cells = {first: ("mlcd", 8), second: ("single", 1)}
    metrics = ("image_to_text_median_rank", "token_cosine")
    rows = [f"{name},{loss},{l},0.1,64,few,{metric},2,{l / 10},0.1,,,"
            for metric in metrics for name, (loss, l) in cells.items()]  # fmt: skip
    head = "name,loss,l,r,K,dataset,metric,seeds,mean,half_width,reference,difference,"
    csv_table(tmp_path / "table.csv", "\n".join([f"{head}difference_half_width", *rows]))
    head = "first,second,dataset,metric,difference,half_width,paired_seeds,verdict,"
    orders = [f"{first},{second},few,{metric},-2.0,0.5,2,below,78.1,76.9" for metric in metrics]
    csv_table(tmp_path / "orders.csv", "\n".join([f"{head}paper_first,paper_second", *orders]))
    drawing = draw(Report(), str(tmp_path / "table.csv"), str(tmp_path / "orders.csv"))
    assert drawing.title.startswith("Of 1 orders that the paper reports, 1 hold here, 0 are")
    [row] = cells_of(drawing.body)[-1:]
    assert row[0] == "mlcd, l = 8, r = 0.1 − single, l = 1, r = 0.1"
    assert row[3] == "−2.000 ± 0.500: first is better"
    assert row[4] == "−2.000 ± 0.500: first is lower"
    # The lower rank is the best; of the spread no value is.
    assert drawing.body.count('class="number best"') == 1
    assert 'class="number best">0.100 ± 0.100' in drawing.body
