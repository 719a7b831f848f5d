"""What finished runs say about themselves: their cell, seed and scores."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from mlcd.config import Cell
from mlcd.utils.errors import UserError
from mlcd.utils.records import read_record

#: (data set, metric) → score
Scores = dict[tuple[str, str], float]


@dataclasses.dataclass(frozen=True)
class Run:
    """One training and its scores. `name`: the cell's, or the model's of a baseline."""

    name: str
    seed: int
    scores: Scores
    cell: Cell | None = None


def read_runs(folders: Sequence[str]) -> list[Run]:
    """Read trainings, in the order given.

    The cell stands in the encoder's own description, so that no folder's name can tell a wrong one.
    Raises :class:`UserError` if a file is missing or damaged, if the scores are of another encoder,
    if a run is given twice, or if runs differ in more than what a cell and a seed are: in a key of
    train, in images, for one K in centers, or in the images that they are scored on.
    """
    runs: list[Run] = []
    others: dict[str, dict[str, Any]] = {}
    grounds: list[tuple[str, Any, Path]] = []
    for folder in folders:
        path = Path(folder) / "train" / "encoder.json"
        about = read_record(path, "train")
        try:
            section = dict(about["section"])
            cell = Cell(
                section.pop("loss"),
                section.pop("positives"),
                section.pop("negative_ratio"),
                about["num_classes"],
            )
            seed, sha256 = section.pop("seed"), about["sha256"]
        except (KeyError, TypeError):
            raise UserError(f"{path}: does not describe a training; rerun train") from None
        if cell.l is None:
            raise UserError(f"{path}: trained without train.positives; set it and train again")
        others[str(path)] = section
        grounds += _grounds(about, cell, path)
        scored = Path(folder) / "evaluate" / "trained.json"
        scores, _ = _scores(scored)
        judged = read_record(scored, "evaluate")
        grounds += _judged_on(judged, scored)
        if judged.get("encoder_sha256") != sha256:
            raise UserError(f"{scored}: not the scores of the encoder of {path}; rerun evaluate")
        if any(run.cell == cell and run.seed == seed for run in runs):
            raise UserError(f"{folder}: {cell.name}, seed {seed}, is given twice; give each once")
        runs.append(Run(cell.name, seed, scores, cell))
    _require_equal(grounds)
    first, *rest = others.items()
    for name, section in rest:
        for key, value in section.items():
            if first[1].get(key) != value:
                raise UserError(
                    f"{name}: train.{key} is {value!r}, and {first[1].get(key)!r} in {first[0]}; "
                    "compare runs of one config"
                )
    return runs


def _grounds(about: dict[str, Any], cell: Cell, path: Path) -> Iterator[tuple[str, Any, Path]]:
    """Yield what must be equal in trainings that are compared: a name, its value, and the file."""
    made_from = about.get("made_from", {})
    for name, key in (("images", "images"), (f"centers of K = {cell.k}", "centroids")):
        if found := made_from.get(key):
            yield name, found, path


def _judged_on(record: dict[str, Any], path: Path) -> Iterator[tuple[str, Any, Path]]:
    """Yield the same of the scores in a file."""
    for name, about in record["datasets"].items():
        if isinstance(about, dict) and "images" in about:
            yield f"images of {name}", about["images"], path


def _require_equal(grounds: Sequence[tuple[str, Any, Path]]) -> None:
    first: dict[str, tuple[Any, Path]] = {}
    for name, value, path in grounds:
        known, other = first.setdefault(name, (value, path))
        if value != known:
            raise UserError(f"{path}: other {name} than {other}; compare runs of one data")


def read_baselines(paths: Sequence[str]) -> list[Run]:
    """Read scores of features without training. Raises :class:`UserError`."""
    found = []
    for path in paths:
        scores, seed = _scores(Path(path))
        found.append(Run(str(read_record(path, "evaluate")["model"]), seed, scores))
    return found


def _scores(path: Path) -> tuple[Scores, int]:
    values = read_record(path, "evaluate")
    try:
        scores = {
            (dataset, metric): float(value)
            for dataset, about in values["datasets"].items()
            for metric, value in about["scores"].items()
        }
        return scores, int(values["seed"])
    except (KeyError, TypeError, AttributeError, ValueError):
        raise UserError(f"{path}: holds no scores; rerun evaluate --part metrics") from None
