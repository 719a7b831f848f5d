"""Tables of docs/results/regions.md, from the rows of benchmarks/regions_study.py.

    python benchmarks/regions_table.py

writes them between the page's two marks. Intervals are Student's t over seeds, at 95 %; differences
are taken seed by seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from regions_rows import METRICS, PAGE, Row, read_rows
from regions_study import CONFIG, SEEDS, Study, setting_of
from study import program, shown, with_tables
from study import verdict as verdict_of

from mlcd.config import load
from mlcd.stages.ablate.intervals import Interval, difference, interval
from mlcd.utils.files import write_text

#: arm, metric → seed → score
Values = Mapping[tuple[str, str], Mapping[int, float]]


class Gain(NamedTuple):
    """A difference of two scores: what it is called, and arm and metric of each.

    `asked`: what the hypothesis says of it: "above", "not below", or nothing.
    """

    words: str
    first: tuple[str, str]
    second: tuple[str, str]
    asked: str = ""


def gains() -> list[Gain]:
    """Return the differences of the page, those of the hypothesis first."""
    found = []
    for how, words in (("knn", "k-NN"), ("probe", "probe")):
        of_layer, of_roi = f"region_{how}_layer", f"region_{how}_roi"
        title = f"region {words}: layer (mosaic) − roi (plain)"
        found.append(Gain(title, ("mosaic", of_layer), ("plain", of_roi), "above"))
    for name in ("tags_map", "knn_20"):
        found.append(
            Gain(f"{METRICS[name]}: mosaic − plain", ("mosaic", name), ("plain", name), "not below")
        )
    for name, words in METRICS.items():
        if name.startswith("region_") and "layer" not in name:
            found.append(Gain(f"{words}: mosaic − plain", ("mosaic", name), ("plain", name)))
    for how, words in (("knn", "k-NN"), ("probe", "probe")):
        for view in ("roi", "crop"):
            found.append(
                Gain(
                    f"region {words}: layer (mosaic) − {view} (mosaic)",
                    ("mosaic", f"region_{how}_layer"), ("mosaic", f"region_{how}_{view}"),
                )
            )  # fmt: skip
    return found


def values_of(rows: Sequence[Row]) -> Values:
    """Return the scores by arm and metric, then seed."""
    found: dict[tuple[str, str], dict[int, float]] = {}
    for row in rows:
        for name, value in row.scores.items():
            found.setdefault((row.arm, name), {})[row.seed] = value
    return found


def gain(values: Values, one: Gain) -> Interval | None:
    """Return a gain over the seeds of both; None without any."""
    return difference(values.get(one.first, {}), values.get(one.second, {}))


def verdict(values: Values) -> str:
    """Return what the hypothesis is by these rows: holds, does not hold, or not decided yet."""
    for one in gains():
        found = gain(values, one)
        if one.asked and (found is None or found.n < len(SEEDS)):
            return "not decided yet"
    said = {one: found.verdict for one in gains() if one.asked and (found := gain(values, one))}
    good = all(
        word == "above" if one.asked == "above" else word != "below" for one, word in said.items()
    )
    return "holds" if good else "does not hold"


def tables(rows: Sequence[Row], total: int) -> str:
    """Return the page's tables as Markdown."""
    lines = [f"**{len(rows)} of {total} rows are run** (a row is an arm with one seed)."]
    if not rows:
        return "\n".join(lines)
    values = values_of(rows)
    lines += [f"**The hypothesis: {verdict(values)}.**", "",
              "| difference | mean, 95 % interval | |", "|---|---:|---|"]  # fmt: skip
    for one in gains():
        found = gain(values, one)
        if found is None:
            continue
        title = f"**{one.words}**" if one.asked else one.words
        lines.append(f"| {title} | {shown(found, '+')} | {verdict_of(found)} |")
    arms = list(dict.fromkeys(row.arm for row in rows))
    lines += ["", f"| score | chance | {' | '.join(arms)} |", "|---|---:|" + "---:|" * len(arms)]
    chance = {name: value for row in rows for name, value in row.chance.items()}
    for name, words in METRICS.items():
        cells = [values.get((arm, name), {}) for arm in arms]
        means = [shown(interval(list(found.values()))) if found else "" for found in cells]
        drawn = f"{chance[name]:.4f}" if name in chance else ""
        lines.append(f"| {words} | {drawn} | {' | '.join(means)} |")
    seeds = ", ".join(f"{arm} {sum(row.arm == arm for row in rows)}" for arm in arms)
    return "\n".join([*lines, "", f"Seeds: {seeds}."])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--page", type=Path, default=PAGE)
    page = parser.parse_args().page
    table = page.with_suffix(".csv")
    rows = read_rows(table, setting_of(CONFIG, 0))
    total = len(Study(load(CONFIG), page.parent, 0, SEEDS, table).jobs())
    write_text(page, with_tables(page, "regions_table.py", tables(rows, total)))
    print(f"{page}: {len(rows)} of {total} rows")


if __name__ == "__main__":
    program("regions_table", main)
