"""Part `results`: every model on every data set, from evaluate's summary.csv."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence

import pandas as pd
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mlcd.config import Report
from mlcd.config.labeled import only_describes
from mlcd.stages.report import verdict
from mlcd.stages.report.page import Drawing, sections, table
from mlcd.stages.report.verdict import PUBLISHED, number, signed
from mlcd.utils import charts
from mlcd.utils.glossary import metric as metric_words
from mlcd.utils.glossary import model as model_words

#: Order of columns and bars.
_MODELS = ("chance", "pixels", "random", "trained", "frozen")
#: What is no model, and is drawn as a line.
_CHANCE = "chance"


def draw(section: Report, scores: str) -> Drawing:
    """Draw table and bars, from `scores` (summary.csv)."""
    frame = verdict.read(scores)
    means = verdict.means_of(frame)
    datasets = list(dict.fromkeys(frame["dataset"]))
    models = ordered(frame["model"])
    body = sections(*((dataset, score_table(means.loc[dataset], models)) for dataset in datasets))
    # Models of one run may have different seeds (train.seed, evaluate.seed): that is one each.
    seeds = int(frame.groupby(["model", "dataset", "metric"])["seed"].nunique().max())
    lead = (
        verdict.beside_frozen(means)
        + _directions(means)
        + (
            f"Means over {seeds} seeds, ± one standard deviation."
            if seeds > 1
            else "One seed: differences of a few points may be chance."
        )
    )
    with charts.style():
        chart = _chart(means, datasets, [model for model in models if model != _CHANCE])
    return Drawing(verdict.title(means), lead, body, chart)


def ordered(models: Iterable[str]) -> list[str]:
    """Return different models in the order of columns and bars."""

    def rank(model: str) -> tuple[int, str]:
        return (_MODELS.index(model) if model in _MODELS else len(_MODELS), model)

    return sorted(set(models), key=rank)


def _directions(means: pd.DataFrame) -> str:
    """Return a sentence that says which metrics are better when lower, and which judge nothing."""
    metrics = dict.fromkeys(metric for _, metric in verdict.metrics_of(means))
    described = [metric for metric in metrics if only_describes(metric)]
    names = dict.fromkeys(means[means["lower"]].index.get_level_values("metric"))
    lower = [metric for metric in names if metric not in described]
    said = "Higher is better"
    if lower:
        said += f", but for {', '.join(map(metric_words, lower))}"
    if described:
        said += f"; {', '.join(map(metric_words, described))} only describes"
    return said + (". " if lower or described else " everywhere. ")


def _best(values: pd.DataFrame) -> float:
    """Return the best mean of one data set and metric."""
    return float(values["mean"].min() if values["lower"].any() else values["mean"].max())


def score_table(means: pd.DataFrame, models: Sequence[str]) -> Markup:
    """Return one data set's table: a row per metric, a column per model, the best of each in bold.

    Of what only describes, none is. `means`: as of :func:`verdict.means_of`, without the level of
    data sets. Columns of what the trained encoder has more than the frozen one, of the paper's
    figures, and of ours less theirs follow, where there are such.
    """
    metrics = list(dict.fromkeys(means.index.get_level_values("metric")))
    known = means[PUBLISHED].notna().any()
    both = {"trained", "frozen"} <= set(models)
    columns = ["metric", *map(model_words, models)]
    columns += ["trained − frozen"] * both + ["published", "trained − published"] * bool(known)
    rows: list[list[str]] = []
    best: list[tuple[int, int]] = []
    for metric in metrics:
        here = means.loc[metric]
        scale = here["mean"].max()
        row = [metric_words(metric)]
        for model in models:
            if model not in here.index:
                row.append("–")
                continue
            cell = here.loc[model]
            spread = f" ± {number(cell['std'], scale)}" if cell["count"] > 1 else ""
            if not only_describes(metric) and cell["mean"] == _best(here):
                best.append((len(rows), len(row)))
            row.append(number(cell["mean"], scale) + spread)
        if both:
            pair = {"trained", "frozen"} <= set(here.index)
            gain = here.loc["trained", "mean"] - here.loc["frozen", "mean"] if pair else 0.0
            row.append(signed(gain, scale) if pair else "–")
        if known:
            row += _published(here)
        rows.append(row)
    return table(columns, rows, numbers=tuple(range(1, len(columns))), best=tuple(best))


def _published(here: pd.DataFrame) -> list[str]:
    """Return the paper's figure and ours less theirs; dashes if there is none."""
    found = here.dropna(subset=[PUBLISHED])
    if found.empty:
        return ["–", "–"]
    mean, theirs = found["mean"].iloc[0], found[PUBLISHED].iloc[0]
    return [number(theirs, mean), signed(mean - theirs, mean)]


def _chart(means: pd.DataFrame, datasets: Sequence[str], models: Sequence[str]) -> Figure:
    """Draw one panel of bars per data set and metric."""
    panels = verdict.metrics_of(means)
    across = 2 if len(panels) == 4 else min(3, len(panels))
    rows = math.ceil(len(panels) / across)
    chart = charts.figure(height=rows * (0.95 + 0.36 * len(models)))
    charts.pad(chart, h_pad=0.1)
    grid = chart.subplots(rows, across, squeeze=False, sharey=True).ravel()
    for axes, (dataset, metric) in zip(grid, panels, strict=False):
        name = metric_words(metric)
        title = f"{dataset}: {name}" if len(datasets) > 1 else name
        _bars(axes, means.loc[dataset].loc[metric], models, title)
        axes.set_title(textwrap.fill(title, 96 // across))
    for axes in grid[len(panels) :]:
        axes.remove()
    handles, words = grid[0].get_legend_handles_labels()
    if handles:
        chart.legend(handles, words, loc="outside lower right")
    return chart


def _bars(axes: Axes, means: pd.DataFrame, models: Sequence[str], title: str) -> None:
    top = float(means["mean"].max())
    for place, model in enumerate(models):
        if model not in means.index:
            continue
        value, spread, count = means.loc[model, ["mean", "std", "count"]]
        color = charts.MODELS.get(model, charts.GREEN)
        error = spread if count > 1 else None
        bars = axes.barh(place, value, height=0.68, color=color, xerr=error, ecolor=charts.MUTED)
        said = f"{model_words(model)}: {value:.4f}" + (f" ± {spread:.4f}" if count > 1 else "")
        charts.note_bars(axes, bars, [(title, said)])
        axes.annotate(
            number(value, top), (value + (error or 0), place), xytext=(5, 0),
            textcoords="offset points", va="center", fontsize=9,
            fontweight="bold" if model == "trained" else "normal",
        )  # fmt: skip
    if _CHANCE in means.index:
        axes.axvline(means.loc[_CHANCE, "mean"], color=charts.INK, linewidth=1.2, linestyle=":",
                     label=_CHANCE)  # fmt: skip
    axes.set_yticks(range(len(models)), [model_words(model) for model in models])
    axes.set_ylim(len(models) - 0.5, -0.5)
    axes.set_xlim(0, top * 1.25 if top > 0 else 1)
    axes.locator_params(axis="x", nbins=4)
    charts.grid_only(axes, "x")
