"""What a run is doing, read from its own files: nothing of it is touched, and nobody is asked.

Snakemake's newest log has the jobs, their own logs how far they are, the folders of gangs the ranks
and their signs of life. Only for the state of a Slurm job Slurm is asked, where it can be.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import re
import shutil
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlcd.commands.status import alive
from mlcd.commands.status.training import newest
from mlcd.launch import gang_files
from mlcd.slurm import client
from mlcd.stages.report.runlog import Job, is_below, planned, read_logs, stage_of
from mlcd.utils.logging import PROGRESS

#: What a stage leaves last, below the results: it tells that the stage was done by an earlier run.
_LAST = {
    "prepare": "urls/*.json",
    "download": "images/*/manifest.json",
    "embed": "embeddings/*.h5",
    "curate": "curate/summary.json",
    "regions": "regions/*.h5",
    "cluster": "clusters/centroids.h5",
    "label": "labels/summary.json",
    "ocr": "ocr/vocabulary.json",
    "train": "train/encoder.json",
    "text": "text/text.json",
    "evaluate": "evaluate/summary.csv",
    "export": "export/*/check.json",
    "report": "report/efficiency.html",
    "audit": "audit/lock.json",
}
#: Bytes at the end of a log that are read.
_TAIL = 1 << 16
#: Files that are counted for the disk at most: a look must not take minutes.
_FILES = 200_000


@dataclasses.dataclass
class Stage:
    """Jobs of a stage in this run, and how far those are that run.

    `state`: done, running, failed, waiting, or before (an earlier run has done it). `progress`: of
    each job that runs, in the words of its log. `seconds` is the time since the first began, to the
    end of the last.
    """

    name: str
    state: str
    jobs: int = 0
    finished: int = 0
    running: int = 0
    failed: int = 0
    seconds: float | None = None
    left: float | None = None
    progress: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Gang:
    """A gang: its job, how many ranks have started and finished, seconds since a sign of life.

    `state` says why a job waits, where Slurm tells; `nodes` are those of its newest start.
    """

    output: str
    launcher: str
    job: str
    state: str
    ranks: int
    started: int
    finished: int
    silence: float | None
    failure: str = ""
    nodes: list[str] = dataclasses.field(default_factory=list)


@dataclasses.dataclass
class Failure:
    """A job that failed in the newest run: its rule and wildcards, its log and the last line."""

    rule: str
    wildcards: str
    log: str
    said: str


@dataclasses.dataclass
class Look:
    """All of it. `state`: complete, running, failed, stopped, or empty; `by` is who runs it."""

    results: str
    state: str
    by: str
    stages: list[Stage]
    gangs: list[Gang]
    failures: list[Failure]
    training: dict[str, Any]
    disk: dict[str, int]


def look(results: Path, project: Path | None) -> Look:
    """Return what the run with these results is doing. `project`: the folder with .snakemake."""
    log = newest_log(project, results) if project else None
    jobs = _jobs(project, log, results) if project and log else []
    plan = planned(log) if log else {}
    by = alive.worker(results, project)
    # Jobs whose end no log tells run only as long as their Snakemake does.
    runs = bool(project and alive.snakemake(project))
    stages = _stages(results, plan, jobs, runs=runs, project=project)
    failures = [_failure(job, project) for job in jobs if job.state == "failed" and project]
    return Look(
        str(results), _state(stages, failures, by), by, stages, list(_gangs(results)),
        failures, newest(results, tail), _disk(results),
    )  # fmt: skip


def project_of(results: Path, given: Path | None) -> Path | None:
    """Return the folder that Snakemake works in for these results; None if there is none."""
    here = [given] if given else [Path.cwd(), *results.resolve().parents]
    for folder in here:
        if (folder / ".snakemake").is_dir() and newest_log(folder, results):
            return folder
    return None


def newest_log(project: Path, results: Path) -> Path | None:
    """Return Snakemake's newest log that speaks of these results."""
    for path in sorted((project / ".snakemake" / "log").glob("*.snakemake.log"), reverse=True):
        with contextlib.suppress(OSError):
            text = path.read_text(encoding="utf-8", errors="replace")
            outputs = re.findall(r"^ *output: (.*)$", text, re.MULTILINE)
            names = _names(project, results)
            if any(is_below(one, name) for one in outputs for name in names):
                return path
    return None


def _names(project: Path, results: Path) -> list[str]:
    """Return how Snakemake, in `project`, may name the results."""
    return list(dict.fromkeys([os.path.relpath(results, project), str(results.resolve())]))


def _jobs(project: Path, log: Path, results: Path) -> list[Job]:
    """Return the jobs of a log; of those that were tried again the last try alone."""
    found = [job for name in _names(project, results) for job in read_logs([log], name)]
    return list({job.outputs: job for job in found}.values())


def _stages(
    results: Path, plan: dict[str, int], jobs: list[Job], *, runs: bool, project: Path | None
) -> list[Stage]:
    counts: Counter[str] = Counter()
    for rule, count in plan.items():
        counts[stage_of(rule)] += count
    found = []
    for name, pattern in _LAST.items():
        mine = [job for job in jobs if stage_of(job.rule) == name]
        if counts[name] or mine:
            found.append(_of_run(name, counts[name], mine, runs=runs, project=project))
        elif any(results.glob(pattern)):
            found.append(Stage(name, "before"))
    return found


def _of_run(name: str, count: int, jobs: list[Job], *, runs: bool, project: Path | None) -> Stage:
    done = [job for job in jobs if job.state == "done"]
    failed = [job for job in jobs if job.state == "failed"]
    now = [job for job in jobs if job.state == "unknown" and runs]
    stage = Stage(name, "waiting", max(count, len(done)), len(done), len(now), len(failed))
    begun = [began for job in jobs if (began := job.started or job.submitted)]
    if begun:
        last = time.time() if now else max((job.ended or 0 for job in done), default=0)
        stage.seconds = max(0.0, last - min(begun))
    if done and now and stage.seconds:
        stage.left = stage.seconds / len(done) * (stage.jobs - len(done))
    for job in now:
        line, left = _progress_of(Path(project or ".") / job.log) if job.log else ("", None)
        if line:
            stage.progress.append(line)
        if left is not None and stage.jobs - len(done) <= len(now):
            stage.left = max(left, stage.left or 0) if len(now) > 1 else left
    stage.state = _word(stage)
    return stage


def _word(stage: Stage) -> str:
    if stage.running:
        return "running"
    if stage.failed:
        return "failed"
    return "done" if stage.jobs and stage.finished >= stage.jobs else "waiting"


def _progress_of(log: Path) -> tuple[str, float | None]:
    """Return the last line of progress in a job's log, and the seconds left, if it tells."""
    for line in reversed(tail(log)):
        _, _, said = line.partition(" INFO ")
        if found := PROGRESS.match(said):
            done, total, speed = int(found[2]), found[3], float(found[5])
            left = (int(total) - done) / speed if total and speed > 0 else None
            return said, left
    return "", None


def tail(path: Path) -> list[str]:
    """Return the last lines of a file, without what would move a terminal's cursor."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL))
            text = file.read(_TAIL).decode(errors="replace")
    except OSError:
        return []
    return [plain(line) for line in text.splitlines() if line.strip()]


def plain(text: str) -> str:
    """Return text with a mark in the place of each character that is none to read."""
    return "".join(char if char.isprintable() else "?" for char in text.replace("\t", " "))


def _failure(job: Job, project: Path) -> Failure:
    lines = tail(project / job.log) if job.log else []
    said = next((line for line in reversed(lines) if " ERROR " in line), lines[-1] if lines else "")
    return Failure(
        job.rule, plain(job.wildcards), plain(job.log), said.partition(" ERROR ")[2] or said
    )


def _gangs(results: Path) -> Iterator[Gang]:
    """Iterate over the gangs whose output is not there yet, or that still work."""
    for path in sorted(results.glob("**/state/*.gang/job.json")):
        record = gang_files.Record.read(path.parent)
        if record is None:
            continue
        # Where the results have been moved, the record names the old place.
        files = gang_files.newest_try(path.parent / record.token)
        ranks = range(record.ranks)
        finished = sum((files / f"rank-{rank}.done").exists() for rank in ranks)
        failure = _said(files)
        state = "finished" if finished == record.ranks else "failed" if failure else "unknown"
        if record.launcher == "slurm" and record.job_id and state == "unknown":
            state = _asked(record.job_id)
        latest = alive.silence(files, record.ranks)
        if state == "unknown" and latest is not None:
            state = "running" if alive.is_heard(latest) else "silent"
        yield Gang(
            path.parent.name.removesuffix(".gang"), record.launcher, record.job_id or "", state,
            record.ranks, sum((files / f"rank-{rank}.json").exists() for rank in ranks), finished,
            latest, failure, _nodes(files, record.ranks),
        )  # fmt: skip


def _nodes(files: Path, ranks: int) -> list[str]:
    """Return the names of the nodes that ranks of a start say they are on."""
    found = set()
    for rank in range(ranks):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            found.add(plain(json.loads((files / f"rank-{rank}.json").read_text())["node"]))
    return sorted(found)


def _asked(job_id: str) -> str:
    status = client.ask(job_id) if shutil.which("scontrol") else None
    if status is None:
        return "unknown"
    reason = f" ({plain(status.reason)})" if status.reason not in ("", "None") else ""
    return f"{status.state}{reason}"


def _said(files: Path) -> str:
    with contextlib.suppress(OSError, ValueError):
        failure = gang_files.read_failure(files, gang_files.FAILED)
        if isinstance(failure, dict):
            return plain(
                f"rank {failure.get('rank')}: {failure.get('message', failure.get('kind'))}"
            )
    return ""


def _disk(results: Path) -> dict[str, int]:
    """Return bytes of the results (of the first 200,000 files) and bytes free beside them."""
    used = count = 0
    for folder, _, names in os.walk(results):
        for name in names:
            with contextlib.suppress(OSError):
                used += Path(folder, name).lstat().st_size
        count += len(names)
        if count > _FILES:
            break
    return {"used": used, "files": count, "free": shutil.disk_usage(results).free}


def _state(stages: list[Stage], failures: list[Failure], by: str) -> str:
    if by:
        return "running"
    if failures:
        return "failed"
    states = {stage.name: stage.state for stage in stages}
    if not states:
        return "empty"
    whole = states.get("audit") in ("done", "before") and "waiting" not in states.values()
    return "complete" if whole else "stopped"
