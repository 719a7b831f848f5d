"""Table and figure of docs/results/scenes.md, from the rows of benchmarks/scenes_study.py.

    python benchmarks/scenes_table.py

writes docs/results/scenes.svg, and the tables between the page's two marks. Equal rows give equal
bytes. Intervals are Student's t over seeds, at 95 %; differences are taken seed by seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib.axes import Axes
from scenes_rows import METRICS, PAGE, Row, read_rows
from scenes_study import CONFIG, OBJECTS, SEEDS, Study, batches, setting_of
from study import program, shown, verdict, with_tables

from mlcd.config import Cell, load
from mlcd.stages.ablate.intervals import Interval, difference, interval
from mlcd.utils import charts
from mlcd.utils.files import atomic_path, write_text

#: objects, name → seed → score, of one metric
Values = Mapping[tuple[int, str], Mapping[int, float]]


class Gain(NamedTuple):
    """A difference of two cells: what it is called, and their names."""

    words: str
    first: str
    second: str


def gains(own: Cell) -> list[tuple[Gain, bool]]:
    """Return the differences of the page, and whether a hypothesis is about each.

    First the two of the hypothesis, at the config's own r, then the same at r = 1, then l = 4.
    """
    found = []
    for r, named in ((own.r, True), (1.0, False)):
        for l in (8, 4):
            cell = own._replace(l=l, r=r)
            one, mlc = cell._replace(l=1), cell._replace(loss="mlc")
            named_here = named and l == 8
            tail = f"r = {r:g}"
            found.append((Gain(f"l = {l} − l = 1 (mlcd, {tail})", cell.name, one.name), named_here))
            found.append((Gain(f"mlcd − mlc (l = {l}, {tail})", cell.name, mlc.name), named_here))
    return sorted(found, key=lambda pair: not pair[1])


def values_of(rows: Sequence[Row], metric: str) -> Values:
    """Return the scores of one metric by objects and name, then seed."""
    found: dict[tuple[int, str], dict[int, float]] = {}
    for row in rows:
        found.setdefault((row.objects, row.name), {})[row.seed] = row.scores[metric]
    return found


def gain_at(values: Values, objects: int, gain: Gain) -> Interval | None:
    """Return a gain at one number of objects, over the seeds of both cells; None without any."""
    return difference(values.get((objects, gain.first), {}), values.get((objects, gain.second), {}))


def growth(values: Values, gain: Gain) -> Interval | None:
    """Return a gain with the most objects minus that with the fewest, seed by seed."""

    def by_seed(objects: int) -> dict[int, float]:
        one = values.get((objects, gain.first), {})
        other = values.get((objects, gain.second), {})
        return {seed: one[seed] - other[seed] for seed in one if seed in other}

    return difference(by_seed(OBJECTS[-1]), by_seed(OBJECTS[0]))


def tables(rows: Sequence[Row], own: Cell, total: int) -> str:
    """Return the page's tables as Markdown: how much is run, gains, cells, K."""
    lines = [
        f"**{len(rows)} of {total} rows are run** (a row is a cell or baseline with one seed)."
    ]
    if not rows:
        return "\n".join(lines)
    columns = [f"{n} objects" if n > 1 else "1 object" for n in OBJECTS]
    names = dict.fromkeys(row.name for row in rows)
    k_names = [name for name in names if name not in ("random", "frozen")
               and Cell.parse(name).k != own.k]  # fmt: skip
    for metric, words in METRICS.items():
        values = values_of(rows, metric)
        lines += ["", f"### {words}", ""]
        lines += [f"| difference | {' | '.join(columns)} | {OBJECTS[-1]} − {OBJECTS[0]} objects |",
                  "|---|" + "---:|" * (len(columns) + 1)]  # fmt: skip
        for gain, named in gains(own):
            cells = [shown(gain_at(values, n, gain), "+") for n in OBJECTS]
            title = f"**{gain.words}**" if named else gain.words
            lines.append(f"| {title} | {' | '.join(cells)} | {_verdict(growth(values, gain))} |")
        lines += ["", f"| cell | seeds | {' | '.join(columns)} |",
                  "|---|---:|" + "---:|" * len(columns)]  # fmt: skip
        chance = {row.objects: row.chance[metric] for row in rows}
        drawn = [f"{chance[n]:.4f}" if n in chance else "" for n in OBJECTS]
        lines.append(f"| chance | | {' | '.join(drawn)} |")
        for name in sorted((name for name in names if name not in k_names), key=_place):
            here = [values.get((n, name), {}) for n in OBJECTS]
            most = max(map(len, here))
            lines.append(f"| {name} | {most} | {' | '.join(map(_mean, here))} |")
    if k_names:
        lines += ["", "### r by K (one object, mlcd, l = 1)", ""]
        lines += [f"| K | {' | '.join(METRICS.values())} |", "|---:|" + "---:|" * len(METRICS)]
        for k in sorted({own.k, *(Cell.parse(name).k for name in k_names)}):
            cell = own._replace(l=1, k=k)
            found = [
                _verdict(gain_at(values_of(rows, metric), OBJECTS[0], _by_r(cell)))
                for metric in METRICS
            ]
            lines.append(f"| {k} | {' | '.join(found)} |")
        lines += ["", f"The figures are r = {own.r:g} minus r = 1."]
    return "\n".join(lines)


def _by_r(cell: Cell) -> Gain:
    return Gain("r", cell.name, cell._replace(r=1.0).name)


def _place(name: str) -> tuple[object, ...]:
    """Order of rows: baselines, then by r, loss and l."""
    if name in ("random", "frozen"):
        return (0.0, name)
    cell = Cell.parse(name)
    return (1 + cell.r, ("single", "mlc", "mlcd").index(cell.loss), cell.l)


def _mean(scores: Mapping[int, float]) -> str:
    return shown(interval(list(scores.values()))) if scores else ""


def _verdict(found: Interval | None) -> str:
    """Return a difference with its verdict."""
    return f"{shown(found, '+')} {verdict(found)}" if found else ""


def draw(rows: Sequence[Row], own: Cell) -> bytes:
    """Return the figure as SVG: both gains of the hypothesis by number of objects, by metric."""
    with charts.style():
        chart = charts.figure(9.4, 3.4)
        named = [gain for gain, is_named in gains(own) if is_named]
        panels = chart.subplots(1, len(named), sharey=True)
        for axes, gain in zip(panels, named, strict=True):
            _panel(axes, rows, gain)
        panels[0].set_ylabel("gain, with 95 % interval")
        handles, words = panels[0].get_legend_handles_labels()
        chart.legend(handles, words, loc="outside lower center", ncols=len(METRICS))
    return charts.rendered(chart, "svg")


def _panel(axes: Axes, rows: Sequence[Row], gain: Gain) -> None:
    places = range(len(OBJECTS))
    for shift, (metric, color) in enumerate(
        zip(METRICS, (charts.BLUE, charts.ORANGE, charts.GREEN), strict=True)
    ):
        values = values_of(rows, metric)
        found = [
            (place, gain_at(values, n, gain)) for place, n in zip(places, OBJECTS, strict=True)
        ]
        there = [(place, one) for place, one in found if one is not None]
        axes.errorbar(
            [place + 0.08 * (shift - 1) for place, _ in there],
            [one.mean for _, one in there],
            yerr=[one.half or 0.0 for _, one in there],
            color=color, label=METRICS[metric], marker="o", markersize=4, capsize=2, linewidth=1.4,
        )  # fmt: skip
    axes.axhline(0, color=charts.MUTED, linewidth=0.8)
    axes.set_xticks(list(places), [str(n) for n in OBJECTS])
    axes.set_xlim(-0.4, len(OBJECTS) - 0.6)
    axes.set_xlabel("objects per scene")
    axes.set_title(gain.words)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--page", type=Path, default=PAGE)
    page = parser.parse_args().page
    config = load(CONFIG)
    table = page.with_suffix(".csv")
    rows = read_rows(table, setting_of(CONFIG, 0))
    study = Study(config, page.parent, 0, SEEDS, table)
    total = sum(map(len, batches(study)))
    text = tables(rows, config.own_cell, total)
    write_text(page, with_tables(page, "scenes_table.py", text))
    if rows:
        with atomic_path(page.with_suffix(".svg")) as temporary:
            temporary.write_bytes(draw(rows, config.own_cell))
    print(f"{page}: {len(rows)} of {total} rows")


if __name__ == "__main__":
    program("scenes_table", main)
