"""What trainings of an ablation leave behind, with scores of a test's choice."""

from __future__ import annotations

import csv
from pathlib import Path

from mlcd.cli import main
from mlcd.config import Cell
from mlcd.utils.records import write_record

MLCD, MLC = Cell("mlcd", 8, 0.1, 64), Cell("mlc", 8, 0.1, 64)

SINGLE, ONE = Cell("single", 1, 0.1, 64), Cell("mlcd", 1, 0.1, 64)


def finished(
    folder: Path,
    cell: Cell,
    seed: int,
    knn: float,
    made_from: dict[str, list[str]] | None = None,
    **section: object,
) -> str:
    """Leave what one training and its evaluation leave."""
    home = folder / cell.name / f"seed-{seed}"
    values = {"loss": cell.loss, "positives": cell.l, "negative_ratio": cell.r, "seed": seed}
    sha256 = f"{cell.name} {seed}"
    about = {"num_classes": cell.k, "sha256": sha256, "section": {"epochs": 2, **values, **section}}
    if made_from is not None:
        about["made_from"] = made_from
    scores(home / "evaluate" / "trained.json", "trained", seed, knn, encoder_sha256=sha256)
    (home / "train").mkdir(parents=True)
    write_record(home / "train" / "encoder.json", about)
    return str(home)


def scores(path: Path, model: str, seed: int, knn: float, **about: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    few = {"scores": {"knn_20": knn, "linear_probe": knn + 0.1}, "chance": {}}
    write_record(path, {"model": model, "seed": seed, **about, "datasets": {"few": few}})
    return str(path)


def ablation_words(tmp_path: Path) -> list[str]:
    """Leave a grid of four cells and two seeds, with baselines; return the command's words."""
    values = {MLC: (0.50, 0.52), MLCD: (0.53, 0.551), SINGLE: (0.45, 0.55), ONE: (0.60, 0.622)}
    runs = [
        finished(tmp_path / "ablate", cell, seed, value)
        for cell, both in values.items()
        for seed, value in enumerate(both)
    ]
    baselines = [
        scores(tmp_path / "ablate" / f"random-{s}.json", "random", s, 0.2 + s / 10) for s in (0, 1)
    ]
    baselines.append(scores(tmp_path / "ablate" / "pixels.json", "pixels", 0, 0.3))
    table = tmp_path / "ablate" / "table.csv"
    return ["--runs", *runs, "--baseline-scores", *baselines, "--reference", MLCD.name,
            "--output", str(table)]  # fmt: skip


def table(words: list[str], name: str = "table.csv") -> dict[tuple[str, ...], dict[str, str]]:
    assert main(["ablate", *words]) == 0
    path = Path(words[words.index("--output") + 1]).with_name(name)
    keys = ("name", "metric") if name == "table.csv" else ("first", "second", "metric")
    with path.open(newline="") as handle:
        return {tuple(row[key] for key in keys): row for row in csv.DictReader(handle)}
