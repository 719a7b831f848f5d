"""Part `text`: loss, temperature and speed of the text tower by step, from its metrics.jsonl."""

from __future__ import annotations

from mlcd.config import Report
from mlcd.report import curves, style
from mlcd.report.page import Drawing

_PANELS = (
    ("Contrastive loss", "loss", (("loss", "", style.INK),)),
    ("Texts of a step that find their picture", "share", (("accuracy", "", style.BLUE),)),
    ("Learned temperature", "temperature", (("temperature", "", style.PURPLE),)),
    ("Learning rate", "rate", (("lr", "", style.BLUE),)),
    ("Gradient norm", "norm (log scale)", (("grad_norm", "", style.BLUE),)),
    ("Throughput", "pairs a second, all ranks", (("pairs_per_s", "", style.GREEN),)),
    ("Share of time waiting for data", "share", (("data_wait_share", "", style.ORANGE),)),
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
        said.append(f"{found:.1%} of a step's texts find their picture at the end")
    lead = "; ".join(said + curves.pace(values, "pairs_per_s", "pairs"))
    with style.style():
        chart = curves.draw(values, _PANELS)
    return Drawing(
        curves.loss_title(values),
        f"{lead}." if lead else "",
        curves.first_and_last(values, _PANELS),
        chart,
        curves.not_finite(values),
    )
