"""Curves over the steps of a training, from a metrics.jsonl: what pages of trainings share."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from mlcd.stages.report.page import render, sections, table
from mlcd.utils import charts
from mlcd.utils.errors import UserError
from mlcd.utils.records import parse_line

#: Longer runs are drawn as means of this many spans: more than a screen has points.
_POINTS = 400

#: Places of a panel where values are told, and rows of the table of values.
_NOTES, _ROWS = 60, 20

#: A panel: its title, the axis, and its series (field, label, color); drawn if any has values.
Panel = tuple[str, str, Sequence[tuple[str, str, str]]]


def read_metrics(path: str, stage: str) -> dict[str, np.ndarray]:
    """Return what `stage` logged: field → float64 [lines] in the order of steps.

    NaN where a line lacks the field. A step logged twice (by a run that was resumed) keeps its last
    line, and a last line torn by a kill is left out. Raises :class:`UserError` if there is no line,
    or one that is no metrics.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the stage {stage} first") from None
    except UnicodeDecodeError:
        raise UserError(f"{path}: not text; remove it and rerun {stage}") from None
    by_step: dict[int, dict[str, float]] = {}
    for number, line in enumerate(lines, start=1):
        try:
            record = parse_line(line)
            by_step[int(record["step"])] = {
                key: float(value)
                for key, value in record.items()
                if isinstance(value, int | float) and not isinstance(value, bool)
            }
        except (ValueError, TypeError, KeyError):
            if number == len(lines) and not line.endswith("\n"):
                break
            raise UserError(
                f"{path}: line {number} is no metrics with a step, or damaged; rerun {stage}"
            ) from None
    if not by_step:
        raise UserError(f"{path}: holds no step yet; let {stage} log one first")
    records = [by_step[step] for step in sorted(by_step)]
    fields = sorted({key for record in records for key in record})
    return {key: np.array([record.get(key, np.nan) for record in records]) for key in fields}


def beside(values: dict[str, np.ndarray], more: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return both in one: fields over the steps of either, NaN where a step lacks one."""
    steps = np.union1d(values["step"], more["step"])
    found = {"step": steps}
    for part in (values, more):
        places = np.searchsorted(steps, part["step"])
        for name in part.keys() - {"step"}:
            found[name] = np.full(len(steps), np.nan)
            found[name][places] = part[name]
    return found


def ends(values: np.ndarray) -> tuple[float, float]:
    """Return the medians of the first and of the last twentieth of the finite values."""
    finite = values[np.isfinite(values)]
    if not len(finite):
        return math.nan, math.nan
    span = max(1, len(finite) // 20)
    return float(np.median(finite[:span])), float(np.median(finite[-span:]))


def _number(value: float) -> str:
    return f"{value:.4g}" if math.isfinite(value) else "–"


def _median(values: dict[str, np.ndarray], key: str) -> float:
    finite = values.get(key, np.empty(0))
    finite = finite[np.isfinite(finite)]
    return float(np.median(finite)) if len(finite) else math.nan


def _loss(values: dict[str, np.ndarray]) -> np.ndarray:
    return values.get("loss", np.full(len(values["step"]), np.nan))


def loss_title(values: dict[str, np.ndarray]) -> str:
    """Say how far the loss came."""
    first, last = ends(_loss(values))
    count = int(values["step"][-1])
    steps = f"{count:,} step{'s' * (count != 1)}"
    if f"{first:.3f}" == f"{last:.3f}":
        return f"Loss stayed at {last:.3f} in {steps}"
    return f"Loss {'fell' if last < first else 'rose'} from {first:.3f} to {last:.3f} in {steps}"


def pace(values: dict[str, np.ndarray], field: str, unit: str) -> list[str]:
    """Say how fast training was (`field`, in `unit` a second), and how long it waited for data."""
    speed, wait = _median(values, field), _median(values, "data_wait_share")
    said = [f"median speed {speed:,.0f} {unit}/s"] if math.isfinite(speed) else []
    return [*said, f"{wait:.1%} of the time waiting for data"] if math.isfinite(wait) else said


def not_finite(values: dict[str, np.ndarray]) -> list[str]:
    """Return a warning if the loss is somewhere no number."""
    if len(bad := np.flatnonzero(~np.isfinite(_loss(values)))):
        return [f"The loss is not finite at step {int(values['step'][bad[0]]):,}."]
    return []


def first_and_last(values: dict[str, np.ndarray], panels: Sequence[Panel]) -> Markup:
    """Return a heading and a table of each series' first and last values."""
    rows = [
        (f"{title}: {label}" if label else title, *map(_number, ends(values[field])))
        for title, _, series in panels
        for field, label, _ in series
        if field in values
    ]
    shown = table(["series", "first", "last"], rows, numbers=(1, 2))
    return sections(("First and last values", shown)) + _values(values, panels)


def _values(values: dict[str, np.ndarray], panels: Sequence[Panel]) -> Markup:
    """Return the curves as a table that opens, of steps evenly spread from the first to the last.

    It is the curves' numbers for those who come by keyboard, hear the page, or print it.
    """
    fields = [
        (f"{title}: {label}" if label else title, values[field])
        for title, _, series in panels
        for field, label, _ in series
        if np.isfinite(values.get(field, np.nan)).any()
    ]
    steps = values["step"]
    shown = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), _ROWS)).round().astype(int))
    rows = [
        [charts.thousands(steps[place]), *(_number(float(of[place])) for _, of in fields)]
        for place in shown
    ]
    columns = ["step", *(name for name, _ in fields)]
    return render("values.html", values=table(columns, rows, numbers=range(len(columns))))


def draw(values: dict[str, np.ndarray], panels: Sequence[Panel]) -> Figure:
    """Draw the panels that have values, two per row."""
    panels = [
        (title, unit, [line for line in series if np.isfinite(values.get(line[0], np.nan)).any()])
        for title, unit, series in panels
    ]
    panels = [panel for panel in panels if panel[2]]
    rows = max(1, math.ceil(len(panels) / 2))
    chart = charts.figure(height=2.9 * rows)
    charts.pad(chart, w_pad=0.12, h_pad=0.12)
    grid = chart.subplots(rows, 2, squeeze=False, sharex=True).ravel()
    for axes, (title, unit, series) in zip(grid, panels, strict=False):
        for field, label, color in series:
            _line(axes, values["step"], values[field], label, color)
        _notes(axes, values, title, series)
        axes.set_title(title)
        axes.set_ylabel(unit)
        axes.tick_params(labelbottom=True)
        if "log" in unit:
            charts.plain_log(axes, "y")
        if unit == "share":
            axes.set_ylim(0, max(1e-3, axes.get_ylim()[1]))
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g}%")
        elif unit == "rate":
            axes.locator_params(axis="y", nbins=5)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:.6g}")
        elif "per second" in unit:
            axes.set_ylim(0, None)
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.15g}")
        if any(label for _, label, _ in series):
            charts.legend_above(axes)
    for axes in grid[len(panels) :]:
        axes.remove()
    for axes in grid[max(0, len(panels) - 2) : len(panels)]:
        axes.set_xlabel("step")
        axes.xaxis.set_major_formatter(lambda value, _: charts.thousands(value))
    return chart


def _line(axes: Axes, steps: np.ndarray, values: np.ndarray, label: str, color: str) -> None:
    """Draw a series; a long one as means of spans over a band from least to greatest."""
    keep = np.isfinite(values)
    steps, values = steps[keep], values[keep]
    if len(values) > _POINTS:
        spans = np.array_split(np.arange(len(values)), _POINTS)
        steps, low, high, values = (
            np.array([reduce(of[span]) for span in spans])
            for reduce, of in (
                (np.mean, steps), (np.min, values), (np.max, values), (np.mean, values),
            )
        )  # fmt: skip
        axes.fill_between(steps, low, high, color=color, alpha=0.15, linewidth=0)
    mark = "o" if len(values) == 1 else ""
    axes.plot(steps, values, color=color, label=label, marker=mark)


def _notes(
    axes: Axes, values: dict[str, np.ndarray], title: str, series: Sequence[tuple[str, str, str]]
) -> None:
    """Tell step and values along the curves, at evenly spread steps."""
    steps = values["step"]
    shown = np.unique(np.linspace(0, len(steps) - 1, min(len(steps), _NOTES)).round().astype(int))
    centers = steps[shown]
    bounds = np.concatenate([centers[:1], (centers[1:] + centers[:-1]) / 2, centers[-1:]])
    for place, left, right in zip(shown, bounds[:-1], bounds[1:], strict=True):
        said = [
            f"{label or title}: {_number(float(values[field][place]))}"
            for field, label, _ in series
            if math.isfinite(values[field][place])
        ]
        if said:
            words = [f"step {charts.thousands(steps[place])}", *said]
            charts.note(axes, (float(left), float(right)), None, words, guide=True)
