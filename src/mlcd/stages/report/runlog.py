"""What Snakemake's own logs say of the jobs of a run: asked, submitted, ended.

Each run of Snakemake leaves `.snakemake/log/*.log`, with a block a job and a time before it. The
logs of Slurm jobs (`.snakemake/slurm_logs`, kept by the profiles) tell when a job began.
"""

from __future__ import annotations

import contextlib
import csv
import itertools
import pkgutil
import re
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from mlcd import stages

#: Names of stages, without the config: what a key decides does not decide what a log says.
_STAGES = {found.name for found in pkgutil.iter_modules(stages.__path__)}
#: Folders that rules of a run write to.
_FOLDERS = (
    "ablate/", "audit/", "clusters/", "curate/", "embeddings/", "evaluate/", "export/", "images/",
    "labels/", "listings/", "ocr/", "regions/", "report/", "state/", "text/", "train/", "urls/",
)  # fmt: skip
_TIME = re.compile(r"\[(\w{3} \w{3} +\d+ [\d:]{8} \d{4})\]$")
_RULE = re.compile(r"(?:local)?rule (\w+):$")
_KEY = re.compile(r"    (\w+): (.*)$")
_SUBMITTED = re.compile(r"Job (\d+) has been submitted with SLURM jobid (\d+) \(log: (.*)\)\.")
_FINISHED = re.compile(r"Finished jobid: (\d+) ")


@dataclass
class Job:
    """One attempt at a job. Times are seconds since 1970, None where nothing tells them.

    `cpu` (seconds over all threads) and `memory` (MB, peak) are what it took, `threads` (of all
    nodes) and `memory_asked` (MB per node) what it had; `gpus` how many GPUs it held, `gpu_busy`
    the share of time (0 to 1) that they worked. `run` and `queue` are seconds. `nodes` are the
    names of its machines, with commas between them. `tries` counts the starts of a gang.
    """

    rule: str
    wildcards: str = ""
    outputs: str = ""
    benchmark: str = ""
    log: str = ""
    slurm_id: str = ""
    slurm_name: str = ""
    state: str = "unknown"
    threads: int = 1
    memory_asked: float | None = None
    gpus: int = 0
    submitted: float | None = None
    started: float | None = None
    ended: float | None = None
    run: float | None = None
    cpu: float | None = None
    memory: float | None = None
    gpu_busy: float | None = None
    nodes: str = ""
    tries: int = 1
    resources: dict[str, str] = field(default_factory=dict)

    @property
    def queue(self) -> float | None:
        """Seconds between submission and start; None where there was no queue, or nobody knows."""
        if self.submitted is None or self.started is None or not self.slurm_id:
            return None
        return max(0.0, self.started - self.submitted)


def read_logs(paths: Iterable[Path], results: str) -> list[Job]:
    """Return the jobs that wrote into `results`, of all `paths` (Snakemake's logs), in order.

    What benchmark files measured is joined to the last successful attempt that wrote each.
    """
    jobs: list[Job] = []
    for path in sorted(paths):
        with contextlib.suppress(OSError):
            jobs += _read(path.read_text(encoding="utf-8", errors="replace"))
    jobs = _taken_over([job for job in jobs if is_below(job.outputs, results)])
    measured: set[str] = set()
    for job in reversed(jobs):
        if job.slurm_id:
            _read_slurm_log(job)
        if job.state == "done" and job.benchmark and job.benchmark not in measured:
            measured.add(job.benchmark)
            _measure(job)
        if job.run is None and job.started is not None and job.ended is not None:
            job.run = max(0.0, job.ended - job.started)
    return jobs


def is_below(outputs: str, results: str) -> bool:
    """Return whether a job's outputs are of the run in `results`.

    The results of another run may lie below these (results/mine).
    """
    prefix = f"{results.rstrip('/')}/"
    return outputs.startswith(prefix) and outputs.removeprefix(prefix).startswith(_FOLDERS)


def planned(path: Path) -> dict[str, int]:
    """Return how many jobs of each rule the run with this log (Snakemake's) began with."""
    found: dict[str, int] = {}
    with path.open(encoding="utf-8", errors="replace") as lines:
        for line in itertools.dropwhile(lambda line: line != "Job stats:\n", lines):
            if count := re.fullmatch(r"(\w+) +(\d+)\n", line):
                found[count[1]] = int(count[2])
            elif line.startswith("total"):
                break
    return {rule: count for rule, count in found.items() if rule not in ("total", "all")}


def stage_of(rule: str) -> str:
    """Return the stage of a rule, or '': rules of a workflow that imports ours carry its prefix."""
    return next((word for word in rule.split("_") if word in _STAGES or word == "audit"), "")


def _taken_over(jobs: list[Job]) -> list[Job]:
    """Return the jobs, those that outlived their Snakemake as done.

    Its log tells no end of theirs. What they made was taken by the next Snakemake: it ran nothing
    for these outputs, or touched them (mlcd.commands.run.adopt_outputs), which is no job.
    """
    touched: set[int] = set()
    later: dict[str, Job] = {}
    for job in reversed(jobs):
        next_one = later.get(job.outputs)
        if job.state == "unknown" and job.slurm_id:
            if next_one is None:
                made = all(Path(name).exists() for name in job.outputs.split(", "))
            else:
                made = next_one.state == "done" and not next_one.slurm_id
                touched |= {id(next_one)} if made else set()
            job.state = "done" if made else job.state
        later[job.outputs] = job
    return [job for job in jobs if id(job) not in touched]


def _read(text: str) -> list[Job]:
    """Read one log: blocks of jobs, what became of them, and the time above each."""
    clock: float | None = None
    name = ""
    jobs: list[Job] = []
    current: dict[str, Job] = {}
    block: Job | None = None
    failing = False
    for line in text.splitlines():
        if found := _TIME.match(line):
            clock = _seconds(found[1])
        elif line.startswith("SLURM run ID: "):
            name = line.removeprefix("SLURM run ID: ").strip()
        elif found := _RULE.match(line):
            block, failing = Job(found[1], slurm_name=name, submitted=clock), False
            if line.startswith("local") or not name:
                block.started = clock
        elif line.startswith("Error in rule "):
            block, failing = None, True
        elif found := _KEY.match(line):
            key, value = found.groups()
            if key == "jobid":
                if failing and value in current:
                    current[value].state, current[value].ended = "failed", clock
                elif block is not None:
                    current[value] = block
                    jobs.append(block)
            elif block is not None:
                _describe(block, key, value)
        elif found := _SUBMITTED.match(line):
            if found[1] in current:
                current[found[1]].slurm_id = found[2]
                current[found[1]].resources["log"] = found[3]
        elif (found := _FINISHED.match(line)) and found[1] in current:
            current[found[1]].state, current[found[1]].ended = "done", clock
        elif not line.startswith(" "):
            block = None
    return jobs


def _describe(job: Job, key: str, value: str) -> None:
    if key == "wildcards":
        job.wildcards = value
    elif key == "output":
        job.outputs = value
    elif key == "benchmark":
        job.benchmark = value
    elif key == "log":
        job.log = value.partition(" (check log")[0].split(", ")[0]
    elif key == "threads" and value.isdigit():
        job.threads = int(value)
    elif key == "resources":
        job.resources |= dict(
            item.split("=", 1) for item in re.split(r", (?=\w+=)", value) if "=" in item
        )
        asked = job.resources.get("mem_mb", "")
        job.memory_asked = float(asked) if asked.isdigit() else None
        if found := re.fullmatch(r"gpu(?::[A-Za-z]\w*)?(?::(\d+))?", job.resources.get("gres", "")):
            job.gpus = int(found[1] or 1)


def _read_slurm_log(job: Job) -> None:
    """Take the first time in the log of a Slurm job as its start."""
    with contextlib.suppress(OSError):
        text = Path(job.resources["log"]).read_text(encoding="utf-8", errors="replace")
        if found := re.search(_TIME.pattern, text, re.M):
            job.started = _seconds(found[1])
        if found := re.search(r"^host: (\S+)$", text, re.M):
            job.nodes = found[1]


def _measure(job: Job) -> None:
    """Read a benchmark file of Snakemake's; jobs under half a second are not sampled (NA)."""
    with contextlib.suppress(OSError, StopIteration, ValueError, KeyError):
        with Path(job.benchmark).open(encoding="utf-8", newline="") as handle:
            row = next(csv.DictReader(handle, delimiter="\t"))
        job.run = float(row["s"])
        job.cpu = _number(row["cpu_time"])
        job.memory = _number(row["max_rss"])


def _number(text: str) -> float | None:
    return None if text in ("NA", "-", "") else float(text)


def _seconds(text: str) -> float:
    return time.mktime(time.strptime(text, "%a %b %d %H:%M:%S %Y"))
