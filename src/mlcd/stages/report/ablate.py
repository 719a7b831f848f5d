"""Part `ablate`: every cell of the grid with its interval, from the stage ablate's tables."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence

import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mlcd.config import Report
from mlcd.config.labeled import lower_is_better, only_describes
from mlcd.stages.report.page import Drawing, sections, table
from mlcd.utils import charts
from mlcd.utils.errors import UserError
from mlcd.utils.glossary import metric as metric_words
from mlcd.utils.glossary import model as model_words
from mlcd.utils.records import read_csv

_TABLE = [
    "name", "loss", "l", "r", "K", "dataset", "metric", "seeds", "mean", "half_width", "reference",
    "difference", "difference_half_width",
]  # fmt: skip
_ORDERS = [
    "first", "second", "dataset", "metric", "difference", "half_width", "paired_seeds", "verdict",
    "paper_first", "paper_second",
]  # fmt: skip
_COLORS = {"mlcd": charts.BLUE, "mlc": charts.GREEN, "single": charts.ORANGE}
_VERDICTS = {"above": "first is better", "below": "second is better", "open": "open"}
_LOWER = {"above": "second is better", "below": "first is better", "open": "open"}
#: Of scores that judge nothing.
_DESCRIBED = {"above": "first is higher", "below": "first is lower", "open": "open"}


def draw(section: Report, ablation: str, orders: str) -> Drawing:
    """Draw table and chart, from `ablation` (table.csv) and `orders` (orders.csv)."""
    frame, pairs = _read(ablation, _TABLE), _read(orders, _ORDERS)
    if frame.empty:
        raise UserError(f"{ablation}: holds no cell; rerun ablate")
    shown = []
    several_k = frame["K"].nunique() > 1
    words = {row["name"]: _label(row, several_k) for _, row in frame.iterrows()}
    for dataset in dict.fromkeys(frame["dataset"]):
        shown.append((dataset, _cells(frame[frame["dataset"] == dataset])))
        here = pairs[pairs["dataset"] == dataset]
        if len(here):
            shown.append((f"{dataset}: does the paper's order hold?", _pairs(here, words)))
    seeds = frame[frame["loss"] != ""]["seeds"]
    low, high = int(seeds.min()), int(seeds.max())
    several = low if low == high else f"{low} to {high}"
    lead = (
        f"Means over {several} seeds ± half of the 95 % interval "
        "(Student's t). Differences are taken seed by seed; an interval that holds zero leaves the "
        "order open. Intervals are about seeds, not about other test images, and are not "
        "corrected for their number."
    )
    with charts.style():
        chart = _chart(frame)
    return Drawing(_finding(pairs), lead, sections(*shown), chart)


def _read(path: str, columns: Sequence[str]) -> pd.DataFrame:
    words = ("name", "loss", "first", "second", "dataset", "metric", "verdict", "reference")
    rows = read_csv(path, "ablate")
    if missing := [column for column in columns if rows and column not in rows[0]]:
        raise UserError(f"{path}: lacks the column {missing[0]}; rerun ablate")
    frame = pd.DataFrame(rows, columns=list(columns))
    for column in columns:
        if column not in words:
            frame[column] = pd.to_numeric(frame[column], errors="coerce")
    return frame


def _finding(pairs: pd.DataFrame) -> str:
    """Say how many of the paper's orders the run decides, and how."""
    known = pairs.dropna(subset=["paper_first", "paper_second"])
    known = known[~known["metric"].map(only_describes).astype(bool)]
    if known.empty:
        return "Trainings that differ in one thing, over seeds"
    # Where lower scores are better, the paper's order is the other way round.
    ahead = (known["paper_first"] > known["paper_second"]) ^ known["metric"].map(lower_is_better)
    sign = ahead.map({True: "above", False: "below"})
    decided = known["verdict"] != "open"
    holds, against = decided & (known["verdict"] == sign), decided & (known["verdict"] != sign)
    return (
        f"Of {len(known)} orders that the paper reports, {holds.sum()} hold here, "
        f"{against.sum()} are reversed, {(~decided).sum()} stay open"
    )


def _pm(mean: float, half: float, sign: str = "") -> str:
    if math.isnan(mean):
        return "–"
    said = f"{mean:{sign}.3f}" + ("" if math.isnan(half) else f" ± {half:.3f}")
    return said.replace("-", "−")


def _label(row: pd.Series, several_k: bool) -> str:
    """Return what people read: the cell's values, or the baseline's name."""
    if not row["loss"]:
        name: str = row["name"]
        return model_words(name)
    label = f"{row['loss']}, l = {row['l']:.0f}, r = {row['r']:g}"
    return f"{label}, K = {row['K']:.0f}" if several_k else label


def _cells(frame: pd.DataFrame) -> Markup:
    """Return the table of one data set: a row per cell, a column per metric, the best in bold."""
    metrics = list(dict.fromkeys(frame["metric"]))
    several_k = frame["K"].nunique() > 1
    means = frame[frame["loss"] != ""].groupby("metric")["mean"]
    top = means.max().where([not lower_is_better(name) for name in means.groups], means.min())
    rows: list[list[str | int]] = []
    best: list[tuple[int, int]] = []
    for name in dict.fromkeys(frame["name"]):
        of = frame[frame["name"] == name].set_index("metric")
        row: list[str | int] = [_label(of.iloc[0], several_k), int(of["seeds"].max())]
        for metric in metrics:
            if metric not in of.index:
                row.append("–")
                continue
            row.append(_pm(of.loc[metric, "mean"], of.loc[metric, "half_width"]))
            is_top = of.loc[metric, "loss"] and of.loc[metric, "mean"] == top[metric]
            if is_top and not only_describes(metric):
                best.append((len(rows), len(row) - 1))
        rows.append(row)
    columns = ["", "seeds", *map(metric_words, metrics)]
    return table(columns, rows, numbers=tuple(range(1, len(columns))), best=tuple(best))


def _pairs(frame: pd.DataFrame, words: Mapping[str, str]) -> Markup:
    """Return the table of one data set's pairs: difference and verdict per metric.

    `words`: name → how the other table calls it.
    """
    metrics = list(dict.fromkeys(frame["metric"]))
    rows = []
    for first, second in dict.fromkeys(zip(frame["first"], frame["second"], strict=True)):
        of = frame[(frame["first"] == first) & (frame["second"] == second)].set_index("metric")
        about = of.iloc[0]
        gap = about["paper_first"] - about["paper_second"]
        row = [
            f"{words.get(first, first)} − {words.get(second, second)}",
            int(about["paired_seeds"]),
        ]
        row.append("–" if math.isnan(gap) else f"{gap:+.1f} points".replace("-", "−"))
        for metric in metrics:
            if metric in of.index:
                one = of.loc[metric]
                words_of = _LOWER if lower_is_better(metric) else _VERDICTS
                words_of = _DESCRIBED if only_describes(metric) else words_of
                verdict = words_of.get(one["verdict"], one["verdict"])
                row.append(f"{_pm(one['difference'], one['half_width'], '+')}: {verdict}")
            else:
                row.append("–")
        rows.append(row)
    return table(
        ["first − second", "seeds", "paper", *map(metric_words, metrics)], rows, numbers=(1, 2)
    )


def _chart(frame: pd.DataFrame) -> Figure:
    """Draw a panel per data set and metric: a dot with interval per cell, lines for baselines."""
    panels = list(dict.fromkeys(zip(frame["dataset"], frame["metric"], strict=True)))
    trained = frame[frame["loss"] != ""]
    names = list(dict.fromkeys(trained["name"]))
    across = min(3, len(panels))
    down = math.ceil(len(panels) / across)
    chart = charts.figure(height=down * (1.5 + 0.27 * len(names)))
    grid = chart.subplots(down, across, squeeze=False, sharey=True).ravel()
    several_k = trained["K"].nunique() > 1
    about = trained.drop_duplicates("name").set_index("name", drop=False)
    labels = [_label(about.loc[name], several_k) for name in names]
    several = frame["dataset"].nunique() > 1
    for axes, (dataset, metric) in zip(grid, panels, strict=False):
        here = frame[(frame["dataset"] == dataset) & (frame["metric"] == metric)]
        _panel(axes, here.set_index("name", drop=False), names)
        name = metric_words(metric)
        axes.set_title(textwrap.fill(f"{dataset}: {name}" if several else name, 96 // across))
        axes.set_yticks(range(len(names)), labels)
        axes.set_ylim(len(names) - 0.5, -0.5)
    for axes in grid[len(panels) :]:
        axes.remove()
    handles, words = grid[0].get_legend_handles_labels()
    if handles:
        chart.legend(handles, words, loc="outside lower center", ncols=len(handles))
    return chart


def _panel(axes: Axes, rows: pd.DataFrame, names: Sequence[str]) -> None:
    for place, name in enumerate(names):
        if name not in rows.index:
            continue
        row = rows.loc[name]
        half = 0.0 if math.isnan(row["half_width"]) else row["half_width"]
        said = f"{_label(row, False)}: {_pm(row['mean'], half)} over {row['seeds']:.0f} seeds"
        charts.note(axes, None, (place - 0.4, place + 0.4), said)
        axes.errorbar(
            row["mean"], place, xerr=half, fmt="o", markersize=5, capsize=3,
            color=_COLORS.get(row["loss"], charts.RED),
        )  # fmt: skip
    for (name, row), dashes in zip(
        rows[rows["loss"] == ""].iterrows(), ((4, 3), (1, 2), (6, 2, 1, 2)), strict=False
    ):
        axes.axvline(
            row["mean"], color=charts.MUTED, linewidth=1.2, dashes=dashes,
            label=model_words(name),
        )  # fmt: skip
    axes.locator_params(axis="x", nbins=5)
    charts.grid_only(axes, "x")
