"""The rows of docs/results/scenes.csv: a cell or baseline with one seed, and its scores."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mlcd.utils.errors import UserError
from mlcd.utils.files import write_text

#: The study's page; its table and figure lie beside it under the same name.
PAGE = Path(__file__).resolve().parents[1] / "docs" / "results" / "scenes.md"
#: Scores by their names in evaluate's files, and what people read.
METRICS = {
    "tags_map": "mAP of the objects (probe)",
    "knn_20": "k-NN of the main object",
    "shared_tags_10": "objects shared, 10 nearest",
}
COLUMNS = ("objects", "name", "seed", *METRICS, *(f"chance_{name}" for name in METRICS), "setting")


class Row(NamedTuple):
    """One training, or baseline, scored: `scores` and `chance` by the names of METRICS."""

    objects: int
    name: str
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
                    int(line["objects"]),
                    line["name"],
                    int(line["seed"]),
                    {name: float(line[name]) for name in METRICS},
                    {name: float(line[f"chance_{name}"]) for name in METRICS},
                    line["setting"],
                )
                for line in reader
            ]
        except (TypeError, ValueError):
            raise UserError(f"{path}: line {reader.line_num} is not whole; remove it") from None
    if len({row[:3] for row in rows}) < len(rows):
        raise UserError(f"{path}: a cell stands twice with one seed; remove one of the lines")
    for row in rows:
        if setting is not None and row.setting != setting:
            raise UserError(
                f"{path}: holds rows of setting {row.setting}, and this one is {setting}; move it "
                "away, or undo the change of demo/scenes.yaml"
            )
    return rows


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write all rows, in their order; equal rows give equal bytes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        scores = [f"{row.scores[name]:.4f}" for name in METRICS]
        chance = [f"{row.chance[name]:.4f}" for name in METRICS]
        writer.writerow([row.objects, row.name, row.seed, *scores, *chance, row.setting])
    write_text(path, text.getvalue())
