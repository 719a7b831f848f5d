"""Part `train`: loss, similarity, rates, gradients and speed by step, from metrics.jsonl."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

import numpy as np

from mlcd.config import Report
from mlcd.stages.report import curves
from mlcd.stages.report.page import Drawing
from mlcd.utils import charts
from mlcd.utils.records import parse_line

#: Mean cosine between features of different images from which on we speak of collapse.
_COLLAPSE = 0.9

_PANELS = (
    (
        "Loss",
        "loss",
        (
            ("loss", "loss", charts.INK),
            ("positive_term", "positive term", charts.BLUE),
            ("negative_term", "negative term", charts.RED),
        ),
    ),
    (
        "Cosine similarity of features",
        "cosine",
        (
            ("positive_similarity", "positives", charts.BLUE),
            ("negative_similarity", "negatives", charts.RED),
            ("feature_cosine", "between images", charts.PURPLE),
        ),
    ),
    (
        "Learning rate",
        "rate",
        (("lr", "encoder", charts.BLUE), ("classifier_lr", "classifier", charts.ORANGE)),
    ),
    (
        "Gradient norm",
        "norm (log scale)",
        (
            ("grad_norm", "encoder", charts.BLUE),
            ("classifier_grad_norm", "classifier", charts.ORANGE),
        ),
    ),
    ("Throughput", "images per second, all ranks", (("images_per_s", "", charts.GREEN),)),
    ("Share of time waiting for data", "share", (("data_wait_share", "", charts.ORANGE),)),
)


def draw(section: Report, metrics: str) -> Drawing:
    """Draw the training curves, from `metrics` (metrics.jsonl)."""
    values = curves.read_metrics(metrics, "train")
    said = curves.pace(values, "images_per_s", "images")
    lead = "; ".join(["Loss with its positive and negative term", *said])
    shown = values
    panels: list[curves.Panel] = list(_PANELS)
    if live := _live(metrics):
        scores, panel = live
        shown = curves.beside(values, scores)
        panels.insert(2, panel)
    with charts.style():
        chart = curves.draw(shown, panels)
    return Drawing(
        curves.loss_title(values),
        f"{lead}.",
        curves.first_and_last(shown, panels),
        chart,
        curves.not_finite(values) + _collapse(values),
    )


def _live(metrics: str) -> tuple[dict[str, np.ndarray], curves.Panel] | None:
    """Return the scores that were taken while training ran, and their panel; None without any."""
    path = Path(metrics).with_name("live.jsonl")
    if not path.exists():
        return None
    values = curves.read_metrics(str(path), "train")
    found = sorted((int(name[4:]), name) for name in values if re.fullmatch(r"knn_\d+", name))
    # The least and the most neighbors: the others lie between.
    chosen = list(dict.fromkeys([found[0], found[-1]])) if found else []
    colors = (charts.BLUE, charts.ORANGE)
    lines = [
        (name, f"{k} neighbors", color) for (k, name), color in zip(chosen, colors, strict=False)
    ]
    if "chance" in values:
        lines.append(("chance", "chance", charts.RED))
    scores = {name: values[name] for name in ("step", *(name for name, _, _ in lines))}
    return scores, (f"k-NN on {_dataset(path)}", "accuracy", lines)


def _dataset(path: Path) -> str:
    """Return the data set of the last line."""
    with contextlib.suppress(ValueError, IndexError):
        return str(parse_line(path.read_text(encoding="utf-8").splitlines()[-1])["dataset"])
    return "a labeled set"


def _collapse(values: dict[str, np.ndarray]) -> list[str]:
    last = curves.ends(values.get("feature_cosine", np.empty(0)))[1]
    if not last >= _COLLAPSE:
        return []
    return [
        f"Features of different images have a mean cosine of {last:.3f}: near 1 the encoder "
        "says the same of every image (collapse)."
    ]
