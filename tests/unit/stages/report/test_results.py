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
    head, *rows = cells(drawing.body)
    assert head == ["metric", "raw pixels", "random weights", "trained encoder", "frozen encoder",
                    "trained − frozen"]  # fmt: skip
    assert [row[0] for row in rows] == ["k-NN accuracy, k = 10", "probe"]
    for model, column in (("trained", 3), ("pixels", 1)):
        values = frame[(frame.model == model) & (frame.metric == "knn_10")]["value"]
        assert rows[0][column] == f"{values.mean():.3f} ± {values.std():.3f}"
    assert rows[0][5] == "−0.200"
    assert drawing.title == (
        "The trained encoder beats random weights and raw pixels on 2 of 2 metrics; the frozen "
        "encoder is ahead of it on 2"
    )
    assert drawing.lead.startswith(
        "The frozen encoder, which made the clusters, is ahead on 2 of 2 metrics, by most in "
        "k-NN accuracy, k = 10: 0.505 against 0.305. "
    )
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
    assert ["map", "–", "55.2"] in cells(drawing.body)


def test_the_spread_of_tokens_is_shown_and_not_judged(tmp_path):
    path = tmp_path / "summary.csv"
    csv_table(
        path,
        "model,dataset,metric,value,seed,better\nrandom,d,knn_10,0.4,0,higher\n"
        "trained,d,knn_10,0.5,0,higher\nfrozen,d,knn_10,0.6,0,higher\n"
        "random,d,token_cosine,0.9,0,lower\ntrained,d,token_cosine,0.2,0,lower\n"
        "frozen,d,token_cosine,0.3,0,lower\n",
    )
    drawing = results.draw(Report(), str(path))
    assert drawing.title == (
        "The trained encoder beats random weights on 1 of 1 metrics; the frozen encoder is ahead "
        "of it on 1"
    )
    assert ["mean cosine of tokens", "0.900", "0.200", "0.300"] in [
        r[:4] for r in cells(drawing.body)
    ]
    # k-NN has a best model; the spread has none.
    assert drawing.body.count('class="number best"') == 1
    assert 'class="number best">0.600' in drawing.body
    assert "Higher is better; mean cosine of tokens only describes. " in drawing.lead


def test_results_know_what_is_better_and_what_was_published(tmp_path):
    path = tmp_path / "summary.csv"
    csv_table(
        path,
        "model,dataset,metric,value,seed,better,published,difference\n"
        "random,d,knn,0.4,0,higher,,\ntrained,d,knn,0.5,0,higher,0.62,-0.12\n"
        "random,d,image_to_text_median_rank,0.9,0,lower,,\ntrained,d,image_to_text_median_rank,0.7,0,lower,,\n",
    )
    drawing = results.draw(Report(), str(path))
    assert "beats random weights on 2 of 2 metrics" in drawing.title
    assert drawing.lead.startswith("Higher is better, but for image to text, median rank. ")
    assert drawing.body.count('class="number best">0.500') == 1
    assert drawing.body.count('class="number best">0.700') == 1
    head, *rows = cells(drawing.body)
    assert head[-2:] == ["published", "trained − published"]
    assert [row[-2:] for row in rows] == [["0.620", "−0.120"], ["–", "–"]]


def test_where_the_trained_encoder_is_ahead_of_the_frozen_one_is_said(tmp_path):
    """Both are told, each with its largest difference; a tie to the digits shown counts as none."""
    path = tmp_path / "summary.csv"
    lines = [
        "model,dataset,metric,value,seed,better", "trained,d,knn_10,0.6,0,higher",
        "frozen,d,knn_10,0.5,0,higher", "trained,d,tags_map,0.2,0,higher",
        "frozen,d,tags_map,0.4,0,higher", "trained,e,retrieval_r1,0.30001,0,higher",
        "frozen,e,retrieval_r1,0.30004,0,higher", "trained,e,image_to_text_median_rank,9,0,lower",
        "frozen,e,image_to_text_median_rank,2,0,lower",
    ]  # fmt: skip
    csv_table(path, "\n".join(lines))
    drawing = results.draw(Report(), str(path))
    assert "frozen encoder, which made the clusters, is ahead on 2 of 4 metrics" in drawing.lead
    assert "image to text, median rank on e: 9.0 against 2.0. " in drawing.lead
    assert "The trained encoder is ahead of it on 1 of 4, by most in k-NN accuracy" in drawing.lead


@pytest.mark.parametrize(
    ("text", "message"),
    [("model,dataset\na,b\n", "lacks the column metric"),
     ("model,dataset,metric,value,seed\n", "holds no value")],
)  # fmt: skip
def test_results_of_another_shape_are_refused(tmp_path, text, message):
    csv_table(tmp_path / "summary.csv", text)
    with pytest.raises(UserError, match=message):
        results.draw(Report(), str(tmp_path / "summary.csv"))
