"""The report's page of results."""

from __future__ import annotations

import pandas as pd
import pytest

from helpers.builders import csv_table
from helpers.report_stores import cells
from mlcd.config import Report
from mlcd.stages.report import results
from mlcd.utils.errors import UserError


def test_results_are_means_over_seeds(stores):
    drawing = results.draw(Report(), str(stores.scores))
    frame = pd.read_csv(stores.scores)
    rows = {row[0]: row[1:] for row in cells(drawing.body)}
    for model, name in (("trained", "trained encoder"), ("pixels", "raw pixels")):
        values = frame[(frame.model == model) & (frame.metric == "knn_10")]["value"]
        assert rows[name][0] == f"{values.mean():.3f} ± {values.std():.3f}"
    assert list(rows)[1:] == [
        "raw pixels", "random weights", "trained encoder", "frozen (made the clusters)",
    ]  # fmt: skip
    assert "beats random weights and raw pixels on 2 of 2 metrics" in drawing.title
    assert drawing.body.count('class="number best"') == 2


def test_models_of_one_run_with_seeds_of_their_own_are_one_seed(stores, tmp_path):
    assert results.draw(Report(), str(stores.scores)).lead.endswith(
        "Means over 2 seeds, ± one standard deviation."
    )
    path = tmp_path / "summary.csv"
    csv_table(
        path,
        "model,dataset,metric,value,seed\nrandom,d,knn,0.4,7\ntrained,d,knn,0.5,0\n"
        "trained,d,map,0.5,0\n",
    )
    assert "One seed" in results.draw(Report(), str(path)).lead


def test_results_that_learned_nothing_say_so(tmp_path):
    path = tmp_path / "summary.csv"
    csv_table(
        path,
        "model,dataset,metric,value,seed\nrandom,d,knn,0.4,0\ntrained,d,knn,0.3,0\n"
        "trained,e,map,55.25,0\n",
    )
    drawing = results.draw(Report(), str(path))
    assert "beats random weights on 0 of 1 metrics" in drawing.title
    assert "may be chance" in drawing.lead
    assert ["trained encoder", "55.2"] in cells(drawing.body)
    assert ["random weights", "–"] in cells(drawing.body)


def test_results_know_what_is_better_and_what_was_published(tmp_path):
    path = tmp_path / "summary.csv"
    csv_table(
        path,
        "model,dataset,metric,value,seed,better,published,difference\n"
        "random,d,knn,0.4,0,higher,,\ntrained,d,knn,0.5,0,higher,0.62,-0.12\n"
        "random,d,median_rank,0.9,0,lower,,\ntrained,d,median_rank,0.7,0,lower,,\n",
    )
    drawing = results.draw(Report(), str(path))
    assert "beats random weights on 2 of 2 metrics" in drawing.title
    assert drawing.lead.startswith("Higher is better, but for median_rank. ")
    assert drawing.body.count('class="number best">0.500') == 1
    assert drawing.body.count('class="number best">0.700') == 1
    assert cells(drawing.body)[-2:] == [
        ["published", "0.620", "–"],
        ["trained encoder − published", "−0.120", "–"],
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [("model,dataset\na,b\n", "lacks the column metric"),
     ("model,dataset,metric,value,seed\n", "holds no value")],
)  # fmt: skip
def test_results_of_another_shape_are_refused(tmp_path, text, message):
    csv_table(tmp_path / "summary.csv", text)
    with pytest.raises(UserError, match=message):
        results.draw(Report(), str(tmp_path / "summary.csv"))
