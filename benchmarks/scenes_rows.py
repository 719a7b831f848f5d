"""The rows of docs/results/scenes.csv: a cell or baseline with one seed, and its scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from study import ROOT, Form

#: The study's page; its table and figure lie beside it under the same name.
PAGE = ROOT / "docs" / "results" / "scenes.md"
#: Scores by their names in evaluate's files, and what people read.
METRICS = {
    "tags_map": "mAP of the objects (probe)",
    "knn_20": "k-NN of the main object",
    "shared_tags_10": "objects shared, 10 nearest",
}
_FORM = Form(
    {"objects": int, "name": str, "seed": int}, tuple(METRICS), "a cell", "demo/scenes.yaml"
)


class Row(NamedTuple):
    """One training, or baseline, scored: `scores` and `chance` by the names of METRICS."""

    objects: int
    name: str
    seed: int
    scores: dict[str, float]
    chance: dict[str, float]
    setting: str


def read_rows(path: Path, setting: str | None = None) -> list[Row]:
    """Return the rows of a CSV; see :meth:`study.Form.read`."""
    return _FORM.read(path, Row, setting)


def write_rows(path: Path, rows: Sequence[Row]) -> None:
    """Write all rows, in their order; equal rows give equal bytes."""
    _FORM.write(path, rows)
