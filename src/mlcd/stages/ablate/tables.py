"""The tables: every cell with its interval, and the pairs of cells that differ in one thing."""

from __future__ import annotations

import itertools
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mlcd.config import Cell
from mlcd.stages.ablate.intervals import Interval, difference, interval
from mlcd.stages.ablate.markdown import markdown
from mlcd.stages.ablate.published_pairs import published
from mlcd.stages.ablate.runs import Run
from mlcd.utils.errors import UserError
from mlcd.utils.files import write_text
from mlcd.utils.records import write_csv

TABLE = (
    "name", "loss", "l", "r", "K", "dataset", "metric", "seeds", "mean", "half_width",
    "reference", "difference", "difference_half_width", "paired_seeds",
)  # fmt: skip
ORDERS = (
    "first", "second", "factor", "dataset", "metric", "difference", "half_width", "paired_seeds",
    "verdict", "paper_first", "paper_second",
)  # fmt: skip
#: Columns that hold scores or differences of scores, written with as many digits.
_SCORES = ("mean", "half_width", "difference", "difference_half_width")
_DIGITS = 5
#: name → seed → score, of one data set and metric
Values = dict[str, dict[int, float]]


def write_tables(
    runs: Sequence[Run],
    baselines: Sequence[Run],
    reference: str | None,
    output: str | os.PathLike[str],
) -> None:
    """Write table.csv (`output`), table.md and orders.csv. Equal inputs give equal bytes.

    Raises :class:`UserError` if `output` is no .csv or no run is of the cell `reference`.
    """
    target = Path(output)
    if target.suffix != ".csv":
        raise UserError(f"--output: {target}: expected a name that ends in .csv")
    cells = list(dict.fromkeys(run.cell for run in runs if run.cell))
    names = [cell.name for cell in cells]
    if reference is not None and reference not in names:
        raise UserError(f"--reference: no run is of {reference}; choose one of {', '.join(names)}")
    chosen = cells[names.index(reference)] if reference else cells[0]
    keys = list(dict.fromkeys(key for run in runs for key in run.scores))
    rows, orders = [], []
    for key in keys:
        values = _values([*baselines, *runs], key)
        rows += _rows(values, cells, chosen, key)
        orders += _orders(values, cells, key)
    _write_csv(target, TABLE, rows)
    _write_csv(target.with_name("orders.csv"), ORDERS, orders)
    write_text(target.with_suffix(".md"), markdown(rows, orders, chosen))


def _values(runs: Sequence[Run], key: tuple[str, str]) -> Values:
    """Return name → seed → score."""
    found: Values = {}
    for run in runs:
        if key in run.scores:
            found.setdefault(run.name, {})[run.seed] = run.scores[key]
    return found


def _rows(
    values: Values, cells: Sequence[Cell], reference: Cell, key: tuple[str, str]
) -> list[dict[str, Any]]:
    rows = []
    about = {cell.name: cell for cell in cells}
    for name, scores in values.items():
        mean = interval(list(scores.values()))
        cell = about.get(name)
        gain = None if name == reference.name else _gain(values, name, reference.name, cell is None)
        rows.append(
            {
                "name": name,
                **({"loss": cell.loss, "l": cell.l, "r": cell.r, "K": cell.k} if cell else {}),
                "dataset": key[0],
                "metric": key[1],
                "seeds": mean.n,
                "mean": mean.mean,
                "half_width": mean.half,
                "reference": reference.name if gain else None,
                "difference": gain.mean if gain else None,
                "difference_half_width": gain.half if gain else None,
                "paired_seeds": gain.n if gain else None,
            }
        )
    return rows


def _gain(values: Values, name: str, reference: str, baseline: bool) -> Interval | None:
    """Return `name` − `reference`, seed by seed; a baseline of one value goes with every seed."""
    one, other = values[name], values.get(reference, {})
    if baseline and len(one) == 1:
        (score,) = one.values()
        one = dict.fromkeys(other, score)
    return difference(one, other)


def _orders(values: Values, cells: Sequence[Cell], key: tuple[str, str]) -> list[dict[str, Any]]:
    """Compare every two cells that differ in one thing, whatever else they share."""
    pairs = list(itertools.combinations(sorted(cells, key=_place), 2))
    rows = []
    for factor in ("loss", "l", "r", "K"):
        for one, other in pairs:
            if not (
                _differs(one, other) == {factor}
                and one.name in values
                and other.name in values
                and (found := difference(values[one.name], values[other.name]))
            ):
                continue
            paper = published(one, other)
            rows.append(
                {
                    "first": one.name,
                    "second": other.name,
                    "factor": factor,
                    "dataset": key[0],
                    "metric": key[1],
                    "difference": found.mean,
                    "half_width": found.half,
                    "paired_seeds": found.n,
                    "verdict": found.verdict,
                    "paper_first": paper[0] if paper else None,
                    "paper_second": paper[1] if paper else None,
                }
            )
    return rows


def _differs(one: Cell, other: Cell) -> set[str]:
    """Return what two cells differ in. The l of `single`, always 1, is part of that loss.

    So `single` stands against `mlcd` with every l: with l = 8 the step that the paper reports,
    with l = 1 the loss at as many labels.
    """
    found = {name for name, a, b in zip(("loss", "l", "r", "K"), one, other, strict=True) if a != b}
    return found - {"l"} if "loss" in found and "single" in (one.loss, other.loss) else found


def _place(cell: Cell) -> tuple[Any, ...]:
    """Order of comparison: losses as the paper ranks them, l and K from large to small, r up."""
    return (("mlcd", "mlc", "single").index(cell.loss), -cell.l, cell.r, -cell.k)


def _write_csv(path: Path, columns: Sequence[str], rows: Sequence[dict[str, Any]]) -> None:
    lines = []
    for row in rows:
        scores = {name: f"{row[name]:.{_DIGITS}f}" for name in _SCORES if row.get(name) is not None}
        lines.append([{**row, **scores}.get(column) for column in columns])
    write_csv(path, columns, lines)
