"""Does training on tiles of mosaics help regions? The study of docs/results/regions.md.

    apt-get download tuxpaint-data && dpkg-deb -x tuxpaint-data_*.deb unpacked
    python benchmarks/regions_study.py --grounds unpacked/usr/share/tuxpaint/templates

composes the scenes (demo/scenes.py), and has the workflow train and score both arms with the seeds
that docs/results/regions.csv lacks: `plain` (train.regions: null) and `mosaic`, the rest equal. As
many seeds of an arm run side by side as there are cores. Each training that is finished is a row of
the CSV at once. So a run may be killed at any time, and the next one continues from the CSV alone.
`--until 22:30` starts none after that time, and `--limit N` stops after N trainings. `--plan` says
what is left.

`--choose` compares settings (CHOICES) on scenes and a seed that the study does not use, by the arm
`plain` alone, and prints the scores of each. The best is then written into demo/regions.yaml.

Rows are of one setting: demo/regions.yaml and the options of the scenes. Another is refused. The
table is made by benchmarks/regions_table.py.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import study as studies
import yaml
from regions_rows import METRICS, OF_LAYER, PAGE, Row, read_rows, write_rows
from study import ROOT

from mlcd.config import Config, load
from mlcd.utils.errors import UserError
from mlcd.utils.files import sha256_json, write_text
from mlcd.utils.records import read_record

CONFIG = ROOT / "demo" / "regions.yaml"
#: Arm → train.regions.
ARMS: dict[str, str | None] = {"plain": None, "mosaic": "mosaic"}
SEEDS = (0, 1, 2, 3, 4)
#: Options of demo/scenes.py: two to four objects, of 34 to 48 of 96 pixels, on grounds of which
#: the frozen encoder sees no more than of objects (benchmarks/scenes_grounds.py).
SCENES: dict[str, Sequence[object]] = {
    "objects": (2, 4), "size": (96,), "train": (4000,), "test": (1000,), "contrast": (0.1,)
}  # fmt: skip
#: The seed of scenes and of trainings by which the setting is chosen, and the settings.
CHOOSE_SEED = 100
CHOICES: tuple[dict[str, Any], ...] = tuple(
    {"epochs": epochs, "lr": rate} for epochs in (10, 20) for rate in (0.001, 0.002)
)
#: Seconds between looks at what is finished.
_LOOK = 5.0


class Job(NamedTuple):
    """A row to be."""

    arm: str
    seed: int


class Study(NamedTuple):
    """What is run: the config, the folder of results, seeds of scenes and trainings, the CSV.

    `arms`: of ARMS. `train`: keys of the section train in place of the config's.
    """

    config: Config
    folder: Path
    scenes_seed: int
    seeds: Sequence[int]
    table: Path
    arms: Sequence[str] = tuple(ARMS)
    train: Mapping[str, Any] = {}

    def output(self, job: Job) -> Path:
        """Return the file with a job's scores."""
        cell = self.config.own_cell.name
        return self.folder / job.arm / "ablate" / cell / f"seed-{job.seed}/evaluate/trained.json"

    def jobs(self) -> list[Job]:
        """Return all jobs in order: both arms of a seed after one another."""
        return [Job(arm, seed) for seed in self.seeds for arm in self.arms]


def missing(study: Study, rows: Sequence[Row]) -> list[Job]:
    """Return the jobs that have no row."""
    done = {(row.arm, row.seed) for row in rows}
    return [job for job in study.jobs() if job not in done]


def batches(left: Sequence[Job], size: int) -> list[list[Job]]:
    """Return jobs in batches of one arm and up to `size` seeds, both arms of these in turn."""
    found: list[list[Job]] = []
    seeds = list(dict.fromkeys(job.seed for job in left))
    for start in range(0, len(seeds), max(1, size)):
        chosen = seeds[start : start + max(1, size)]
        by_arm = [[job for job in left if job.arm == arm and job.seed in chosen] for arm in ARMS]
        found += [batch for batch in by_arm if batch]
    return found


def collect(study: Study, jobs: Sequence[Job], setting: str, since: float = 0.0) -> int:
    """Add a row to the CSV for each of `jobs` that is finished and not there; return how many.

    Files from before `since` (seconds since 1970) are left out: while the workflow runs, they may
    be of other inputs, and be made again.
    """
    rows = read_rows(study.table, setting)
    left = missing(study, rows)
    new = [
        row_of(path, job, setting)
        for job in jobs
        if job in left and (path := study.output(job)).is_file() and path.stat().st_mtime >= since
    ]
    if new:
        write_rows(study.table, [*rows, *new])
    for row in new:
        told = ", ".join(f"{name} {value:.4f}" for name, value in row.scores.items())
        print(f"{row.arm}, seed {row.seed}: {told}", flush=True)
    return len(new)


def row_of(path: Path, job: Job, setting: str) -> Row:
    """Return the row of a finished job. Raises :class:`UserError` if its file is damaged."""
    found = read_record(path, "evaluate")["datasets"]["scenes"]
    scores = {name: float(found["scores"][name]) for name in METRICS if name in found["scores"]}
    chance = {name: float(found["chance"][name]) for name in scores}
    if lacking := METRICS.keys() - OF_LAYER - scores.keys():
        raise UserError(f"{path}: has no {min(lacking)}; remove it, and run the study again")
    return Row(job.arm, job.seed, scores, chance, setting)


def setting_of(config: Path, scenes_seed: int, train: Mapping[str, Any] | None = None) -> str:
    """Return 12 hex digits of what all rows of a CSV share: the config, and the scenes' options."""
    values = yaml.safe_load(config.read_text())
    options = {name: list(words) for name, words in SCENES.items()}
    return sha256_json([values, options, scenes_seed, dict(train or {})])[:12]


def prepare(study: Study, batch: Sequence[Job], grounds: Path | None) -> Path:
    """Compose the scenes where they are not, write the config of a batch, and return its path."""
    arm = batch[0].arm
    data = study.folder / "data"
    words = [word for name, values in SCENES.items() for word in (f"--{name}", *values)]
    studies.compose(data, study.scenes_seed, grounds, words)
    (dataset,) = study.config.evaluate.datasets
    labeled = {"path": data.as_posix()}
    values: dict[str, Any] = {
        "metadata": [f"{data.as_posix()}/train.tar"],
        "results": (study.folder / arm).as_posix(),
        "evaluate": {"datasets": [dataset.model_dump(mode="json", exclude_unset=True) | labeled]},
        "train": {**study.train, "regions": ARMS[arm]},
        "ablate": {"grids": [{"seeds": [job.seed for job in batch]}]},
    }
    path = study.folder / f"{arm}.yaml"
    write_text(path, yaml.safe_dump(values, sort_keys=False))
    return path


def run_batch(study: Study, config: Path, batch: Sequence[Job], setting: str, cores: int) -> None:
    """Have the workflow make a batch, and collect each job as it is finished.

    Raises :class:`UserError` if one fails.
    """
    targets = [str(study.output(job)) for job in batch]
    found = partial(collect, study, batch, setting)
    studies.make([CONFIG, config], targets, cores, found, _LOOK)


def run(study: Study, arguments: argparse.Namespace, setting: str) -> list[Row]:
    """Run what is missing, batch by batch; return all rows. Raises :class:`UserError`."""
    total, left = len(study.jobs()), missing(study, read_rows(study.table, setting))
    print(f"{total - len(left)} of {total} rows are in {study.table}", flush=True)
    for batch in batches(left[: arguments.limit], arguments.cores):
        if studies.is_late(arguments):
            break
        config = prepare(study, batch, arguments.grounds)
        run_batch(study, config, batch, setting, arguments.cores)
    rows = read_rows(study.table, setting)
    print(f"{len(rows)} of {total} rows are in {study.table}", flush=True)
    return rows


def choose(arguments: argparse.Namespace) -> None:
    """Run every setting of CHOICES by the arm plain, and print a table of their scores."""
    folder = arguments.folder or Path("results/regions-choose")
    names = ("tags_map", "region_probe_roi")
    lines = [f"| epochs | learning rate | {' | '.join(METRICS[name] for name in names)} |",
             "|---:|---:|---:|---:|"]  # fmt: skip
    for number, train in enumerate(CHOICES):
        table = folder / f"choice-{number}.csv"
        study = Study(
            load(CONFIG), folder, CHOOSE_SEED, (CHOOSE_SEED,), table, ("plain",), train
        )  # fmt: skip
        rows = run(study, arguments, setting_of(CONFIG, CHOOSE_SEED, train))
        if rows:
            shown = " | ".join(f"{rows[0].scores[name]:.4f}" for name in names)
            lines.append(f"| {train['epochs']} | {train['lr']:g} | {shown} |")
    print("\n".join(lines))


def main() -> None:
    folder = "results/regions"
    arguments = studies.parser(__doc__, folder=folder, page=PAGE, unit="trainings").parse_args()
    if arguments.choose:
        choose(arguments)
        return
    study = Study(load(CONFIG), arguments.folder or Path(folder), 0, SEEDS, arguments.table)
    setting = setting_of(CONFIG, study.scenes_seed)
    if arguments.plan:
        left = missing(study, read_rows(study.table, setting))
        for job in left:
            print(f"{job.arm}, seed {job.seed}")
        print(f"{len(left)} rows are missing")
        return
    run(study, arguments, setting)


if __name__ == "__main__":
    studies.program("regions_study", main)
