"""Where do several labels pay? The study of docs/results/scenes.md, cell by cell, over days.

    apt-get download tuxpaint-data && dpkg-deb -x tuxpaint-data_*.deb unpacked
    python benchmarks/scenes_study.py --grounds unpacked/usr/share/tuxpaint/templates

composes the scenes (demo/scenes.py), and has the workflow train and score the cells that
docs/results/scenes.csv lacks: first those that the hypothesis needs, then those of one question
after another, each with all seeds. Each cell that is finished is a row of the CSV at once. So a
run may be killed at any time, and the next one continues from the CSV alone, on another machine.
`--until 22:30` starts no batch after that time, and `--limit N` stops after N cells. `--plan`
prints what is left.

`--choose` compares settings (CHOICES) on scenes and a seed that the study does not use, and prints
the score of each: the mAP of mlcd with l = 8 and of single, on one and on four objects, in the
mean. What the losses differ by plays no part. The best is then written into demo/scenes.yaml.

Rows are of one setting: demo/scenes.yaml and the options of the scenes. Another is refused. The
table and the figure are made by benchmarks/scenes_table.py.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import study as studies
import yaml
from scenes_rows import METRICS, PAGE, Row, read_rows, write_rows
from study import ROOT

from mlcd.config import Cell, Config, load
from mlcd.config.ablate import Grid
from mlcd.utils.files import sha256_json, write_text
from mlcd.utils.records import read_record

CONFIG = ROOT / "demo" / "scenes.yaml"
OBJECTS = (1, 2, 4)
SEEDS = (0, 1, 2, 3, 4)
#: Scenes of each number of objects.
SCENES = {"train": 4000, "test": 1000}
#: Contrast of grounds: at more, near images of the frozen encoder have one ground, not one object
#: (benchmarks/scenes_grounds.py).
CONTRAST = 0.1
#: K beside the config's own, at the cheapest cell: for the order of r.
OTHER_K = (125, 2000)
#: The seed of scenes and of trainings by which the setting is chosen, and the settings.
CHOOSE_SEED = 100
CHOICES: tuple[dict[str, Any], ...] = tuple(
    {"lr": lr, "classifier_lr": rate} for lr in (2e-3, 5e-3) for rate in (0.01, 0.05)
)
#: Seconds between looks at what is finished.
_LOOK = 5.0


class Job(NamedTuple):
    """A row to be: objects per scene, a cell or the name of a baseline, and the seed."""

    objects: int
    cell: Cell | None
    baseline: str
    seed: int

    @property
    def name(self) -> str:
        """The cell's name, or the baseline's."""
        return self.cell.name if self.cell else self.baseline

    def output(self, results: str) -> str:
        """Return the file with its scores, below the results of its number of objects."""
        if self.cell:
            return f"{results}/ablate/{self.name}/seed-{self.seed}/evaluate/trained.json"
        return f"{results}/ablate/baselines/{self.name}-seed-{self.seed}/{self.name}.json"


class Study(NamedTuple):
    """What is run: the config, the folder of results, seeds of scenes and trainings, the CSV.

    `train`: keys of the section train in place of the config's, while a setting is chosen.
    """

    config: Config
    folder: Path
    scenes_seed: int
    seeds: Sequence[int]
    table: Path
    train: Mapping[str, Any] = {}

    def results(self, objects: int) -> str:
        """Return the results of one number of objects."""
        return (self.folder / f"objects-{objects}").as_posix()


def batches(study: Study) -> list[list[Job]]:
    """Return all jobs in order, in batches of one number of objects.

    Cells that are equal by definition are one (mlc with l = 1 is single). First come the cells of
    the hypothesis (mlcd with l = 8 and 1, mlc with l = 8, at the config's r), then the baselines,
    then r by K in the cheapest cell, then single, then both losses with r = 1 and with l = 4, then
    what is left of the grid. Each cell comes with all seeds: fewer have no interval.
    """
    own = study.config.own_cell
    one = own._replace(l=1)
    core = [own, one, own._replace(loss="mlc")]
    by_k = [one._replace(r=1.0), *(one._replace(r=r, k=k) for k in OTHER_K for r in (own.r, 1.0))]
    beside = [one._replace(loss="single"), *(cell._replace(loss=loss) for cell in
              (own._replace(r=1.0), own._replace(l=4)) for loss in ("mlcd", "mlc"))]  # fmt: skip
    grid = Grid(loss=["mlcd", "mlc", "single"], l=[1, 4, 8], r=[0.1, 1.0], seeds=[0])
    rest = [cell for cell in grid.cells(own) if cell not in [*core, *beside]]

    def jobs(objects: int, cells: Sequence[Cell]) -> list[Job]:
        return [Job(objects, cell, "", seed) for seed in study.seeds for cell in cells]

    found = [jobs(objects, core) for objects in OBJECTS]
    for objects in OBJECTS:
        random = [Job(objects, None, "random", seed) for seed in study.seeds]
        found.append([*random, Job(objects, None, "frozen", study.config.evaluate.seed)])
    found += [jobs(OBJECTS[0], [cell]) for cell in by_k]
    for cell in [*beside, *rest]:
        # The cheapest cell at r = 1 has come by K.
        found += [jobs(n, [cell]) for n in OBJECTS if n != OBJECTS[0] or cell not in by_k]
    return found


def choosing(study: Study) -> list[list[Job]]:
    """Return the jobs by which a setting is judged."""
    own = study.config.own_cell
    cells = (own, own._replace(loss="single", l=1))
    return [
        [Job(objects, cell, "", CHOOSE_SEED) for cell in cells]
        for objects in (OBJECTS[0], OBJECTS[-1])
    ]


def missing(jobs: Sequence[Sequence[Job]], rows: Sequence[Row]) -> list[list[Job]]:
    """Return the batches without the jobs that have a row."""
    done = {(row.objects, row.name, row.seed) for row in rows}
    left = [
        [job for job in batch if (job.objects, job.name, job.seed) not in done] for batch in jobs
    ]
    return [batch for batch in left if batch]


def collect(study: Study, jobs: Sequence[Job], setting: str, since: float = 0.0) -> int:
    """Add a row to the CSV for each of `jobs` that is finished; return how many were new.

    Files from before `since` (seconds since 1970) are left out.
    """
    rows = read_rows(study.table, setting)
    known = {(row.objects, row.name, row.seed) for row in rows}
    new = [
        row_of(study, job, setting)
        for job in jobs
        if (job.objects, job.name, job.seed) not in known
        and (path := Path(job.output(study.results(job.objects)))).is_file()
        and path.stat().st_mtime >= since
    ]
    if new:
        write_rows(study.table, [*rows, *new])
    for row in new:
        scores = ", ".join(f"{name} {row.scores[name]:.4f}" for name in METRICS)
        print(f"{row.objects} objects, {row.name}, seed {row.seed}: {scores}", flush=True)
    return len(new)


def row_of(study: Study, job: Job, setting: str) -> Row:
    """Return the row of a finished job. Raises :class:`UserError` if its file is damaged."""
    path = job.output(study.results(job.objects))
    found = read_record(path, "evaluate")["datasets"]["scenes"]
    scores = {name: float(found["scores"][name]) for name in METRICS}
    chance = {name: float(found["chance"][name]) for name in METRICS}
    return Row(job.objects, job.name, job.seed, scores, chance, setting)


def setting_of(config: Path, scenes_seed: int, train: Mapping[str, Any] | None = None) -> str:
    """Return 12 hex digits of what all rows of a CSV share: the config, and the scenes' options."""
    values = yaml.safe_load(config.read_text())
    return sha256_json([values, SCENES, CONTRAST, scenes_seed, dict(train or {})])[:12]


def prepare(study: Study, jobs: Sequence[Job], grounds: Path | None) -> Path:
    """Compose the scenes where they are not, write the config of a batch, and return its path."""
    objects = jobs[0].objects
    results = Path(study.results(objects))
    data = results / "data"
    words = ["--objects", objects, *(f"--{name}={count}" for name, count in SCENES.items())]
    studies.compose(data, study.scenes_seed, grounds, [*words, f"--contrast={CONTRAST}"])
    (dataset,) = study.config.evaluate.datasets
    labeled = {"path": f"{data.as_posix()}/evaluate.parquet"}
    values: dict[str, Any] = {
        "metadata": [f"{data.as_posix()}/train.tar"],
        "results": results.as_posix(),
        "evaluate": {"datasets": [dataset.model_dump(mode="json", exclude_unset=True) | labeled]},
        "train": dict(study.train),
        # Baselines ask the workflow for the cells of their seed.
        "ablate": {"grids": [{"seeds": sorted({job.seed for job in jobs})}]},
    }
    if (figure := PAGE.with_suffix(".svg")).is_file():
        # Where a report of one of the study's runs is asked for, it shows the study's figure.
        values["report"] = {"figures": [os.path.relpath(figure)]}
    path = results.with_suffix(".yaml")
    write_text(path, yaml.safe_dump(values, sort_keys=False))
    return path


def run_batch(study: Study, config: Path, jobs: Sequence[Job], setting: str, cores: int) -> None:
    """Have the workflow make `jobs`, and collect each as it is finished."""
    targets = [job.output(study.results(job.objects)) for job in jobs]
    found = partial(collect, study, jobs, setting)
    studies.make([CONFIG, config], targets, cores, found, _LOOK)


def run(
    study: Study, arguments: argparse.Namespace, setting: str, jobs: Sequence[Sequence[Job]]
) -> list[Row]:
    """Run what is missing of `jobs`, batch by batch; return all rows. Raises :class:`UserError`."""
    total = sum(map(len, jobs))
    left = missing(jobs, read_rows(study.table, setting))
    allowed = arguments.limit
    print(f"{total - sum(map(len, left))} of {total} rows are in {study.table}", flush=True)
    for batch in left:
        now = batch if allowed is None else batch[:allowed]
        if not now or studies.is_late(arguments):
            break
        config = prepare(study, now, arguments.grounds)
        run_batch(study, config, now, setting, arguments.cores)
        allowed = None if allowed is None else allowed - len(now)
    rows = read_rows(study.table, setting)
    print(f"{len(rows)} of {total} rows are in {study.table}", flush=True)
    return rows


def choose(arguments: argparse.Namespace) -> None:
    """Run every setting of CHOICES, and print a table of their scores."""
    folder = arguments.folder or Path("results/scenes-choose")
    lines = ["| learning rate | of the centers | mAP | k-NN |", "|---:|---:|---:|---:|"]
    for number, train in enumerate(CHOICES):
        table = folder / f"choice-{number}.csv"
        study = Study(load(CONFIG), folder, CHOOSE_SEED, (CHOOSE_SEED,), table, train)
        jobs = choosing(study)
        rows = run(study, arguments, setting_of(CONFIG, CHOOSE_SEED, train), jobs)
        if len(rows) == sum(map(len, jobs)):
            means = [statistics.fmean(row.scores[name] for row in rows)
                     for name in ("tags_map", "knn_20")]  # fmt: skip
            shown = " | ".join(f"{mean:.4f}" for mean in means)
            lines.append(f"| {train['lr']:g} | {train['classifier_lr']:g} | {shown} |")
    print("\n".join(lines))


def main() -> None:
    folder = "results/scenes"
    arguments = studies.parser(__doc__, folder=folder, page=PAGE, unit="cells").parse_args()
    if arguments.choose:
        choose(arguments)
        return
    study = Study(load(CONFIG), arguments.folder or Path(folder), 0, SEEDS, arguments.table)
    setting = setting_of(CONFIG, study.scenes_seed)
    if arguments.plan:
        left = missing(batches(study), read_rows(study.table, setting))
        for batch in left:
            print(f"{batch[0].objects} objects:",
                  *(f"{job.name} (seed {job.seed})" for job in batch))  # fmt: skip
        print(f"{sum(map(len, left))} rows are missing")
        return
    run(study, arguments, setting, batches(study))


if __name__ == "__main__":
    studies.program("scenes_study", main)
