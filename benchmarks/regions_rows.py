"""The rows of docs/results/regions.csv: an arm of the study with one seed, and its scores."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from study import ROOT, Form

#: The study's page; its CSV lies beside it under the same name.
PAGE = ROOT / "docs" / "results" / "regions.md"
_HOWS = {"knn": "k-NN", "probe": "probe"}
#: Those of the view `layer`: the arm without a region layer lacks them.
OF_LAYER = frozenset(f"region_{how}_layer" for how in _HOWS)
#: Scores by their names in evaluate's files, and what people read.
METRICS = {
    **{f"region_{how}_{view}": f"region {words}, {view}"
       for view in ("roi", "layer", "crop", "image") for how, words in _HOWS.items()},
    "tags_map": "mAP of the objects of an image (probe)",
    "knn_20": "k-NN of the main object of an image",
}  # fmt: skip
_FORM = Form(
    {"arm": str, "seed": int}, tuple(METRICS), "an arm", "demo/regions.yaml", lacking=OF_LAYER
)


class Row(NamedTuple):
    """One training, scored: `scores` and `chance` by those names of METRICS that it has."""

    arm: str
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
