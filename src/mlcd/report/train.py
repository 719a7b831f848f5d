"""Part `train`: loss, similarity, rates, gradients and speed by step, from metrics.jsonl."""

from __future__ import annotations

import numpy as np

from mlcd.config import Report
from mlcd.report import curves, style
from mlcd.report.page import Drawing

#: Mean cosine between features of different pictures from which on we speak of collapse.
_COLLAPSE = 0.9

_PANELS = (
    (
        "Loss",
        "loss",
        (
            ("loss", "loss", style.INK),
            ("positive_term", "positive term", style.BLUE),
            ("negative_term", "negative term", style.RED),
        ),
    ),
    (
        "Cosine similarity of features",
        "cosine",
        (
            ("positive_similarity", "positives", style.BLUE),
            ("negative_similarity", "negatives", style.RED),
            ("feature_cosine", "between pictures", style.PURPLE),
        ),
    ),
    (
        "Learning rate",
        "rate",
        (("lr", "encoder", style.BLUE), ("classifier_lr", "classifier", style.ORANGE)),
    ),
    (
        "Gradient norm",
        "norm (log scale)",
        (
            ("grad_norm", "encoder", style.BLUE),
            ("classifier_grad_norm", "classifier", style.ORANGE),
        ),
    ),
    ("Throughput", "pictures a second, all ranks", (("images_per_s", "", style.GREEN),)),
    ("Share of time waiting for data", "share", (("data_wait_share", "", style.ORANGE),)),
)


def draw(section: Report, metrics: str) -> Drawing:
    """Draw the training curves, from `metrics` (metrics.jsonl)."""
    values = curves.read_metrics(metrics, "train")
    said = curves.pace(values, "images_per_s", "pictures")
    lead = "; ".join(["Loss with its positive and negative term", *said])
    with style.style():
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
        f"Features of different pictures have a mean cosine of {last:.3f}: near 1 the encoder "
        "says the same of every picture (collapse)."
    ]
