"""The tables as markdown, for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from mlcd.config import Cell
from mlcd.utils.glossary import metric as metric_words
from mlcd.utils.ownership import MARKDOWN_MARK

Rows = Sequence[dict[str, Any]]
_END = (
    "`above` and `below`: the interval of the difference lies on that side of zero; `open`: it "
    "holds zero. `paper`: the published difference in points, at another scale."
)


def markdown(rows: Rows, orders: Rows, reference: Cell) -> str:
    """Return a table of cells and one of pairs per data set, from the rows of the two CSV files."""
    lines = [
        "# Ablation",
        "",
        "Mean ± half of the 95 % interval (Student's t) over seeds. A difference is taken seed by "
        f"seed; the reference is `{reference.name}`. The intervals are about seeds of training and "
        "evaluation. All seeds share one clustering and labeling per K, so that no interval tells "
        "what another clustering would change; nor what other test images would. None is "
        "corrected for how many are looked at.",
        *_fixed(rows),
    ]
    for dataset in dict.fromkeys(row["dataset"] for row in rows):
        here = [row for row in rows if row["dataset"] == dataset]
        metrics = list(dict.fromkeys(row["metric"] for row in here))
        lines += ["", f"## {dataset}", "", *_cells(here, metrics)]
        pairs = [row for row in orders if row["dataset"] == dataset]
        if pairs:
            lines += ["", *_pairs(pairs, metrics)]
    return "\n".join([*lines, "", _END, "", MARKDOWN_MARK]) + "\n"


def _fixed(rows: Rows) -> list[str]:
    """Say which baselines are one value beside cells of several seeds, if any are."""
    several = any(row["seeds"] > 1 for row in rows if row.get("loss"))
    names = dict.fromkeys(f"`{r['name']}`" for r in rows if not r.get("loss") and r["seeds"] == 1)
    if not several or not names:
        return []
    return [
        "",
        f"{', '.join(names)}: scored with one seed, and set against every seed of the reference. "
        "A linear probe varies with the seed, which cuts its validation images; that is not in "
        "the interval of the difference.",
    ]


def _cells(rows: Rows, metrics: Sequence[str]) -> list[str]:
    """Return one row per cell: each metric, and its difference from the reference."""
    columns = [
        column
        for metric in metrics
        for column in (metric_words(metric), f"{metric_words(metric)} − reference")
    ]
    lines = [f"| | seeds | {' | '.join(columns)} |", f"|---|---:|{'---:|' * len(columns)}"]
    for name in dict.fromkeys(row["name"] for row in rows):
        of = {row["metric"]: row for row in rows if row["name"] == name}
        cells = []
        for row in (of.get(metric, {}) for metric in metrics):
            cells.append(_plus_minus(row.get("mean"), row.get("half_width")))
            difference, half = row.get("difference"), row.get("difference_half_width")
            cells.append(_plus_minus(difference, half, "+"))
        seeds = max(row["seeds"] for row in of.values())
        lines.append(f"| {name} | {seeds} | {' | '.join(cells)} |")
    return lines


def _pairs(rows: Rows, metrics: Sequence[str]) -> list[str]:
    """Return one row per pair: the paper's difference, and ours by metric with its verdict."""
    lines = [f"| first − second | paper | {' | '.join(metrics)} |"]
    lines.append("|---|---:|" + "---:|" * len(metrics))
    for pair in dict.fromkeys((row["first"], row["second"]) for row in rows):
        of = {row["metric"]: row for row in rows if (row["first"], row["second"]) == pair}
        paper, other = (next(iter(of.values()))[f"paper_{side}"] for side in ("first", "second"))
        cells = ["" if paper is None else f"{paper - other:+.1f}"]
        for row in (of.get(metric) for metric in metrics):
            found = row and _plus_minus(row["difference"], row["half_width"], "+")
            cells.append(f"{found} {row['verdict']}" if row else "")
        lines.append(f"| {' − '.join(pair)} | {' | '.join(cells)} |")
    return lines


def _plus_minus(mean: float | None, half: float | None, sign: str = "") -> str:
    """Return 'mean ± half' with four digits, nothing for nothing."""
    if mean is None:
        return ""
    shown = f"{mean:{sign}.4f}"
    return shown if half is None else f"{shown} ± {half:.4f}"
