"""Part `train`: loss, similarity, rates, gradients and speed by step, from metrics.jsonl."""

from __future__ import annotations

import numpy as np

from mlcd.config import Report
from mlcd.stages.report import curves
from mlcd.stages.report.page import Drawing
from mlcd.utils import charts

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
    with charts.style():
        chart = curves.draw(values, _PANELS)
    return Drawing(
        curves.loss_title(values),
        f"{lead}.",
        curves.first_and_last(values, _PANELS),
        chart,
        curves.not_finite(values) + _collapse(values),
    )


def _collapse(values: dict[str, np.ndarray]) -> list[str]:
    last = curves.ends(values.get("feature_cosine", np.empty(0)))[1]
    if not last >= _COLLAPSE:
        return []
    return [
        f"Features of different images have a mean cosine of {last:.3f}: near 1 the encoder "
        "says the same of every image (collapse)."
    ]
