"""The rows of docs/results/regions.csv: an arm of the study with one seed, and its scores."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mlcd.utils.errors import UserError
from mlcd.utils.files import write_text

#: The study's page; its CSV lies beside it under the same name.
PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "regions.md"
_HOWS = {"knn": "k-NN", "probe": "probe"}
_VIEWS = {"roi": "roi", "layer": "layer", "crop": "crop", "image": "image"}
#: Scores by their names in evaluate's files, and what people read. An arm may lack those of layer.
METRICS = {
    **{f"region_{how}_{view}": f"region {words}, {seen}"
       for view, seen in _VIEWS.items() for how, words in _HOWS.items()},
    "tags_map": "mAP of the objects of an image (probe)",
    "knn_20": "k-NN of the main object of an image",
}  # fmt: skip
COLUMNS = ("arm", "seed", *METRICS, *(f"chance_{name}" for name in METRICS), "setting")


class Row(NamedTuple):
    """One training, scored: `scores` and `chance` by those names of METRICS that it has."""

    arm: str
    seed: int
    scores: dict[str, float]
    chance: dict[str, float]
    setting: str


def read_rows(path: Path, setting: str | None = None) -> list[Row]:
    """Return the rows of a CSV, none where it is not there.

    Raises :class:`UserError` if it is not such a table, a row stands twice, or, where `setting` is
    given, a row is of another.
    """
    if not path.exists():
        return []
    with path.open(encoding="utf-8", newline="") as handle:
        reader = csv.DictReader(handle)
        if tuple(reader.fieldnames or ()) != COLUMNS:
            raise UserError(f"{path}: expected the columns {','.join(COLUMNS)}; move it away")
        try:
            rows = [
                Row(
                    line["arm"], int(line["seed"]),
                    {name: float(line[name]) for name in METRICS if line[name] != ""},
                    {name: float(line[f"chance_{name}"]) for name in METRICS if line[name] != ""},
                    line["setting"],
                )
                for line in reader
            ]  # fmt: skip
        except (TypeError, ValueError):
            raise UserError(f"{path}: line {reader.line_num} is not whole; remove it") from None
    if len({row[:2] for row in rows}) < len(rows):
        raise UserError(f"{path}: an arm stands twice with one seed; remove one of the lines")
    for row in rows:
        if setting is not None and row.setting != setting:
            raise UserError(
                f"{path}: holds rows of setting {row.setting}, and this one is {setting}; move it "
                "away, or undo the change of demo/regions.yaml"
            )
    return rows


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write all rows, in their order; equal rows give equal bytes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        cells = [
            f"{found[name]:.4f}" if name in found else ""
            for found in (row.scores, row.chance)
            for name in METRICS
        ]
        writer.writerow([row.arm, row.seed, *cells, row.setting])
    write_text(path, text.getvalue())
