"""Curves of training and of the text tower."""

from __future__ import annotations

import json

import numpy as np
import pytest

from helpers.report_stores import Outline, cells, step
from mlcd.config import Report
from mlcd.stages.report import curves, text, train
from mlcd.utils.errors import UserError


def test_metrics_of_a_killed_and_resumed_run(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": 10, "loss": 9.0}, {"step": 20, "loss": 8.0}, {"step": 20, "loss": 7.5},
             {"step": 30, "loss": 7.0, "feature_cosine": 0.5}]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 40, "lo')
    values = curves.read_metrics(str(path), "train")
    assert values["step"].tolist() == [10, 20, 30]
    assert values["loss"].tolist() == [9.0, 7.5, 7.0]
    assert np.isnan(values["feature_cosine"][:2]).all() and values["feature_cosine"][2] == 0.5
    path.write_text('{"step": 10}\nnonsense\n{"step": 20}\n')
    with pytest.raises(UserError, match="line 2"):
        curves.read_metrics(str(path), "train")
    path.write_text("")
    with pytest.raises(UserError, match="holds no step"):
        curves.read_metrics(str(path), "train")


def test_training_says_what_happened_and_warns(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(step(i)) + "\n" for i in range(10, 410, 10)))
    drawing = train.draw(Report(), str(path))
    assert drawing.title == "Loss fell from 7.700 to 0.100 in 400 steps" and not drawing.warnings
    assert "100 images/s" in drawing.lead and "5.0%" in drawing.lead
    sick = [{**step(i), "feature_cosine": 0.97, "loss": float("nan") if i == 30 else 5.0}
            for i in range(10, 60, 10)]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in sick))
    drawing = train.draw(Report(), str(path))
    assert len(drawing.warnings) == 2
    assert "step 30" in drawing.warnings[0] and "collapse" in drawing.warnings[1]
    assert drawing.warnings[1] in Outline(drawing.html()).words


def test_the_text_tower_says_what_it_learned(stores):
    drawing = text.draw(Report(), str(stores.text_metrics))
    assert drawing.title == "Loss fell from 5.400 to 3.500 in 200 steps" and not drawing.warnings
    assert f"temperature from {1 / 15.3:.4f} to {1 / 34.3:.4f}; 50.0% of a step's" in drawing.lead
    assert "900 pairs/s" in drawing.lead and "1.0% of the time" in drawing.lead
    rows = {row[0]: row[1:] for row in cells(drawing.body)}
    assert rows["Learned temperature"] == [f"{1 / 15.3:.4g}", f"{1 / 34.3:.4g}"]
    with pytest.raises(UserError, match="run the stage text first"):
        text.draw(Report(), str(stores.folder / "none.jsonl"))


def test_nulls_are_gaps_and_a_field_of_nulls_is_left_out(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{**step(i), "negative_similarity": None, "grad_norm": None if i == 20 else 2.0}
             for i in range(10, 60, 10)]  # fmt: skip
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    drawing = train.draw(Report(), str(path))
    rows = {row[0]: row[1:] for row in cells(drawing.body)}
    assert rows["Gradient norm: encoder"] == ["2", "2"]
    assert "Cosine similarity of features: negatives" not in rows
    assert rows["Cosine similarity of features: positives"][0] == "0.025"
    assert not drawing.warnings


def test_a_long_run_is_drawn_small(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(step(i)) + "\n" for i in range(1, 20_001)))
    assert len(train.draw(Report(), str(path)).html()) < 600_000


def test_a_run_of_one_logged_step_is_drawn(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps({"step": 1, "loss": 3.0}) + "\n")
    html = train.draw(Report(), str(path)).html()
    assert "<svg" in html and "Loss stayed at 3.000 in 1 step<" in html


def test_live_scores_are_drawn_over_the_steps(tmp_path):
    """At steps of their own; a loss that is not logged there is no missing loss."""
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(json.dumps(step(number)) + "\n" for number in (5, 10)))
    without = train.draw(Report(), str(path))
    scores = [{"step": at, "dataset": "<few>", "chance": 0.1, "knn_5": at / 10, "knn_20": 0.2,
               "knn_10": 0.3} for at in (3, 6)]  # fmt: skip
    (tmp_path / "live.jsonl").write_text("".join(json.dumps(one) + "\n" for one in scores))
    drawing = train.draw(Report(), str(path))
    assert len(drawing.chart.axes) == len(without.chart.axes) + 1
    (axes,) = [one for one in drawing.chart.axes if one.get_title("left") == "k-NN on <few>"]
    drawn = {line.get_label(): [*line.get_xdata(), *line.get_ydata()] for line in axes.lines}
    assert drawn["5 neighbors"] == [3, 6, 0.3, 0.6]
    assert drawn["20 neighbors"] == [3, 6, 0.2, 0.2] and "10 neighbors" not in drawn
    assert drawn["chance"] == [3, 6, 0.1, 0.1]
    assert drawing.warnings == without.warnings
    assert ["k-NN on &lt;few&gt;: 5 neighbors", "0.3", "0.6"] in cells(str(drawing.body))
