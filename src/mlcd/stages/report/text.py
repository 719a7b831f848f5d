"""Part `text`: loss, temperature and speed of the text tower by step, from its metrics.jsonl."""

from __future__ import annotations

from mlcd.config import Report
from mlcd.stages.report import curves
from mlcd.stages.report.page import Drawing
from mlcd.utils import charts

_PANELS = (
    ("Contrastive loss", "loss", (("loss", "", charts.INK),)),
    ("Texts of a step that find their image", "share", (("accuracy", "", charts.BLUE),)),
    ("Learned temperature", "temperature", (("temperature", "", charts.PURPLE),)),
    ("Learning rate", "rate", (("lr", "", charts.BLUE),)),
    ("Gradient norm", "norm (log scale)", (("grad_norm", "", charts.BLUE),)),
    ("Throughput", "pairs per second, all ranks", (("pairs_per_s", "", charts.GREEN),)),
    ("Share of time waiting for data", "share", (("data_wait_share", "", charts.ORANGE),)),
)


def draw(section: Report, metrics: str) -> Drawing:
    """Draw the tower's curves, from `metrics` (text/metrics.jsonl)."""
    values = curves.read_metrics(metrics, "text")
    said = []
    if "scale" in values:
        values["temperature"] = 1 / values["scale"]
        first, last = curves.ends(values["temperature"])
        said.append(f"Learned temperature from {first:.4f} to {last:.4f}")
    if "accuracy" in values:
        found = curves.ends(values["accuracy"])[1]
        said.append(f"{found:.1%} of a step's texts find their image at the end")
    lead = "; ".join(said + curves.pace(values, "pairs_per_s", "pairs"))
    with charts.style():
        chart = curves.draw(values, _PANELS)
    return Drawing(
        curves.loss_title(values),
        f"{lead}." if lead else "",
        curves.first_and_last(values, _PANELS),
        chart,
        curves.not_finite(values),
    )
