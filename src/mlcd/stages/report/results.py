"""Part `results`: every model on every data set, from evaluate's summary.csv."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mlcd.config import Report
from mlcd.stages.report.page import Drawing, sections, table
from mlcd.utils import charts
from mlcd.utils.errors import UserError
from mlcd.utils.records import read_csv

_COLUMNS = ["model", "dataset", "metric", "value", "seed"]
#: Columns that a table of scores may have: the direction, and the paper's figure.
_BETTER, _PUBLISHED = "better", "published"
#: Order of rows and bars, with the name people read.
_MODELS = {
    "pixels": "raw pixels",
    "random": "random weights",
    "trained": "trained encoder",
    "frozen": "frozen (made the clusters)",
}


def draw(section: Report, scores: str) -> Drawing:
    """Draw table and bars, from `scores` (summary.csv)."""
    frame = _read(scores)
    means = frame.groupby(["dataset", "metric", "model"], sort=False).agg(
        mean=("value", "mean"),
        std=("value", "std"),
        count=("value", "count"),
        lower=("lower", "first"),
        published=(_PUBLISHED, "first"),
    )
    datasets = list(dict.fromkeys(frame["dataset"]))
    models = sorted(set(frame["model"]), key=_rank)
    body = sections(*((dataset, _table(means.loc[dataset], models)) for dataset in datasets))
    # Models of one run may have different seeds (train.seed, evaluate.seed): that is one each.
    seeds = int(frame.groupby(["model", "dataset", "metric"])["seed"].nunique().max())
    lead = _directions(means) + (
        f"Means over {seeds} seeds, ± one standard deviation."
        if seeds > 1
        else "One seed: differences of a few points may be chance."
    )
    with charts.style():
        chart = _chart(means, datasets, models)
    return Drawing(_finding(means, datasets), lead, body, chart)


def _read(path: str) -> pd.DataFrame:
    rows = read_csv(path, "evaluate")
    if not rows:
        raise UserError(f"{path}: holds no value; rerun evaluate")
    frame = pd.DataFrame(rows)
    if missing := [column for column in _COLUMNS if column not in frame]:
        raise UserError(f"{path}: lacks the column {missing[0]}; rerun evaluate")
    frame["value"] = pd.to_numeric(frame["value"], errors="coerce")
    frame = frame.dropna(subset=["value"])
    if frame.empty:
        raise UserError(f"{path}: holds no value; rerun evaluate")
    frame["lower"] = frame.get(_BETTER, "higher") == "lower"
    frame[_PUBLISHED] = pd.to_numeric(frame.get(_PUBLISHED, math.nan), errors="coerce")
    return frame


def _rank(model: str) -> tuple[int, str]:
    known = list(_MODELS)
    return (known.index(model) if model in known else len(known), model)


def _name(model: str) -> str:
    return _MODELS.get(model, model)


def _number(value: float, scale: float) -> str:
    """Return three digits after the point for shares, one for percentages."""
    return f"{value:.3f}" if scale <= 1 else f"{value:.1f}"


def _directions(means: pd.DataFrame) -> str:
    """Return a sentence that says which metrics are better when lower."""
    lower = list(dict.fromkeys(means[means["lower"]].index.get_level_values("metric")))
    if not lower:
        return "Higher is better everywhere. "
    return f"Higher is better, but for {', '.join(lower)}. "


def _best(values: pd.DataFrame) -> float:
    """Return the best mean of one data set and metric."""
    return float(values["mean"].min() if values["lower"].any() else values["mean"].max())


def _table(means: pd.DataFrame, models: Sequence[str]) -> Markup:
    """Return one data set's table: a row per model, a column per metric, the best of each in bold.

    Where there are figures of the paper, a row of these and one of ours less theirs follow.
    """
    metrics = list(dict.fromkeys(means.index.get_level_values("metric")))
    rows: list[list[str]] = []
    best: list[tuple[int, int]] = []
    for model in models:
        row = [_name(model)]
        for metric in metrics:
            if (metric, model) not in means.index:
                row.append("–")
                continue
            cell, top = means.loc[(metric, model)], means.loc[metric]["mean"].max()
            spread = f" ± {_number(cell['std'], top)}" if cell["count"] > 1 else ""
            row.append(_number(cell["mean"], top) + spread)
            if cell["mean"] == _best(means.loc[metric]):
                best.append((len(rows), len(row) - 1))
        rows.append(row)
    rows += _published(means, metrics)
    return table(
        ["model", *metrics], rows, numbers=tuple(range(1, len(metrics) + 1)), best=tuple(best)
    )


def _published(means: pd.DataFrame, metrics: Sequence[str]) -> list[list[str]]:
    """Return the paper's figures and the differences, a row each; nothing if there are none."""
    known = means.dropna(subset=[_PUBLISHED])
    if known.empty:
        return []
    theirs, differences = ["published"], [f"{_name(known.index[0][1])} − published"]
    for metric in metrics:
        if metric not in known.index.get_level_values("metric"):
            theirs.append("–")
            differences.append("–")
            continue
        row = known.loc[metric].iloc[0]
        theirs.append(_number(row[_PUBLISHED], row["mean"]))
        gain = row["mean"] - row[_PUBLISHED]
        differences.append(("+" if gain >= 0 else "−") + _number(abs(gain), row["mean"]))
    return [theirs, differences]


def _finding(means: pd.DataFrame, datasets: Sequence[str]) -> str:
    """Say in one sentence whether anything was learned."""
    metrics = [
        (d, m) for d in datasets for m in dict.fromkeys(means.loc[d].index.get_level_values(0))
    ]
    gains, won = {}, 0
    for dataset, metric in metrics:
        here = means.loc[dataset].loc[metric]
        values = here["mean"].to_dict()
        if {"trained", "random"} <= set(values):
            trained, random, pixels = (values.get(m) for m in ("trained", "random", "pixels"))
            sign = -1 if here["lower"].any() else 1
            gains[dataset, metric] = (trained, random, pixels)
            others = [other for other in (random, pixels) if other is not None]
            won += all(sign * trained > sign * other for other in others)
    if not gains:
        return f"{len(metrics)} metrics on {len(datasets)} data sets"
    (_, metric), (trained, random, _) = next(iter(gains.items()))
    against = (
        "random weights and raw pixels"
        if any(g[2] is not None for g in gains.values())
        else "random weights"
    )
    return (
        f"The trained encoder beats {against} on {won} of {len(gains)} metrics "
        f"({metric}: {_number(trained, trained)} against {_number(random, trained)} at random "
        "weights)"
    )


def _chart(means: pd.DataFrame, datasets: Sequence[str], models: Sequence[str]) -> Figure:
    """Draw one panel of bars per data set and metric."""
    panels = [
        (d, m) for d in datasets for m in dict.fromkeys(means.loc[d].index.get_level_values(0))
    ]
    across = 2 if len(panels) == 4 else min(3, len(panels))
    rows = math.ceil(len(panels) / across)
    chart = charts.figure(height=rows * (0.95 + 0.36 * len(models)))
    charts.pad(chart, h_pad=0.1)
    grid = chart.subplots(rows, across, squeeze=False, sharey=True).ravel()
    for axes, (dataset, metric) in zip(grid, panels, strict=False):
        _bars(axes, means.loc[dataset].loc[metric], models)
        axes.set_title(f"{dataset}: {metric}" if len(datasets) > 1 else metric)
    for axes in grid[len(panels) :]:
        axes.remove()
    return chart


def _bars(axes: Axes, means: pd.DataFrame, models: Sequence[str]) -> None:
    top = float(means["mean"].max())
    for place, model in enumerate(models):
        if model not in means.index:
            continue
        value, spread, count = means.loc[model, ["mean", "std", "count"]]
        color = charts.MODELS.get(model, charts.GREEN)
        error = spread if count > 1 else None
        axes.barh(place, value, height=0.68, color=color, xerr=error, ecolor=charts.MUTED)
        axes.annotate(
            _number(value, top), (value + (error or 0), place), xytext=(5, 0),
            textcoords="offset points", va="center", fontsize=9,
            fontweight="bold" if model == "trained" else "normal",
        )  # fmt: skip
    axes.set_yticks(range(len(models)), [_name(model) for model in models])
    axes.set_ylim(len(models) - 0.5, -0.5)
    axes.set_xlim(0, top * 1.25 if top > 0 else 1)
    axes.locator_params(axis="x", nbins=4)
    charts.grid_only(axes, "x")
