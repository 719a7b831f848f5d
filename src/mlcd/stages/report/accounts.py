"""What Slurm and the gangs' own records add to the jobs of a run: places in the queue, use.

`sacct` is asked first, then the controller (which forgets a job some minutes after its end); where
neither answers, the jobs keep what Snakemake's logs and benchmark files said.
"""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from mlcd.slurm import client
from mlcd.stages.report.runlog import Job
from mlcd.utils.errors import UserError
from mlcd.utils.units import parse_size

_FIELDS = ("JobIDRaw", "JobName", "State", "Submit", "Start", "End", "TotalCPU", "MaxRSS",
           "TRESUsageInAve", "NodeList")  # fmt: skip
#: Jobs in one question.
_AT_ONCE = 200


def ask_slurm(jobs: Sequence[Job]) -> str:
    """Fill in what Slurm knows of `jobs`; return who answered: sacct, scontrol, or nobody."""
    known = {(job.slurm_id, job.slurm_name): job for job in jobs if job.slurm_id}
    if not known:
        return ""
    rows = list(_sacct([slurm_id for slurm_id, _ in known]))
    for row in rows:
        # Steps such as 12.batch carry the use of memory; the job itself carries the times.
        number, _, step = row["JobIDRaw"].partition(".")
        for (slurm_id, name), job in known.items():
            if slurm_id == number and (step or row["JobName"] == name):
                _from_sacct(job, row, step)
    if rows:
        return "sacct"
    told = _run("scontrol", "--oneliner", "show", "job")
    for line in told.splitlines():
        facts = dict(re.findall(r"(\w+)=(\S*)", line))
        asked = known.get((facts.get("JobId", ""), facts.get("JobName", "")))
        if asked is not None:
            _times(asked, facts.get("SubmitTime"), facts.get("StartTime"), facts.get("EndTime"))
            asked.nodes = _names(facts.get("NodeList", "")) or asked.nodes
    return "scontrol" if told else ""


def _sacct(ids: list[str]) -> Iterable[dict[str, str]]:
    for start in range(0, len(ids), _AT_ONCE):
        told = _run("sacct", "--noheader", "--parsable2", f"--format={','.join(_FIELDS)}",
                    f"--jobs={','.join(ids[start : start + _AT_ONCE])}")  # fmt: skip
        for line in told.splitlines():
            values = line.split("|")
            if len(values) == len(_FIELDS):
                yield dict(zip(_FIELDS, values, strict=True))


def _from_sacct(job: Job, row: dict[str, str], step: str) -> None:
    if not step:
        _times(job, row["Submit"], row["Start"], row["End"])
        job.nodes = _names(row["NodeList"]) or job.nodes
        cpu = _duration(row["TotalCPU"])
        job.cpu = cpu if cpu else job.cpu
        state = row["State"].split()[0] if row["State"] else ""
        if state not in ("", "COMPLETED", "RUNNING", "PENDING"):
            job.state = "failed"
        return
    memory = _megabytes(row["MaxRSS"])
    if memory:
        job.memory = max(job.memory or 0.0, memory)
    if found := re.search(r"gres/gpuutil=(\d+)", row["TRESUsageInAve"]):
        job.gpu_busy = int(found[1]) / 100


def _names(text: str) -> str:
    """Return Slurm's list of nodes; nothing for its words where a job had none."""
    return "" if text in ("None assigned", "(null)", "Unknown") else text


def split_nodes(nodes: str) -> Iterator[str]:
    """Iterate over the names of a list as Slurm writes it: a,b or n[1-3,07]."""
    for stem, ranges, end in re.findall(r"([^,\[]+)(?:\[([^\]]*)\])?([^,\[]*)", nodes):
        if not ranges:
            yield stem + end
        for part in ranges.split(",") if ranges else ():
            first, _, last = part.partition("-")
            for number in range(int(first), int(last or first) + 1):
                yield f"{stem}{number:0{len(first)}}{end}"


def _times(job: Job, submitted: str | None, started: str | None, ended: str | None) -> None:
    job.submitted = _instant(submitted) or job.submitted
    job.started = _instant(started) or job.started
    job.ended = _instant(ended) or job.ended
    if _instant(started) and _instant(ended):
        job.run = max(0.0, (job.ended or 0.0) - (job.started or 0.0))


def gang_jobs(paths: Iterable[Path]) -> list[Job]:
    """Return the gang jobs that the launcher recorded (formats.md, results/logs/gang)."""
    jobs = []
    for path in sorted(paths):
        with contextlib.suppress(OSError):
            for line in path.read_text(encoding="utf-8").splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):
                    jobs.append(_gang(json.loads(line)))
    return jobs


def _gang(line: dict[str, Any]) -> Job:
    ranks = line["ranks"]
    newest = max((rank["try"] for rank in ranks), default=0)
    last = [rank for rank in ranks if rank["try"] == newest]
    asked = dict(re.findall(r"(\w[\w/]*)=([\d.]+)", line["asked"].get("tres", "")))
    memory = re.search(r"mem=([\d.]+)([KMGT]?)", line["asked"].get("tres", ""))
    # Each start may have been on other nodes: those of the newest are the job's.
    nodes = sorted({rank["node"] for rank in last})
    job = Job(
        line["stage"], wildcards=f"{_counted(len(last), 'rank')} on {_counted(len(nodes), 'node')}"
    )
    job.nodes = ",".join(nodes)
    job.tries = max(1, int(line.get("tries") or 1))
    job.slurm_id = str(line["job_id"]) if line["launcher"] == "slurm" else ""
    job.state = "done" if line["state"] == "COMPLETED" else "failed"
    job.threads = int(line["asked"].get("cpus") or 0) or len(last)
    job.gpus = int(float(asked.get("gres/gpu", 0)))
    job.submitted, job.started = _instant(line["submitted"]), _instant(line["start"])
    job.ended = _instant(line["end"])
    job.run = _work(ranks)
    if memory:
        job.memory_asked = _megabytes(memory[1] + (memory[2] or "M"))
    job.cpu = sum(rank.get("cpu_s", 0.0) for rank in ranks)
    job.memory = sum(rank.get("max_rss_mb", 0.0) for rank in last)
    busy = [rank["gpu_busy"] for rank in ranks if rank.get("gpu_busy") is not None]
    job.gpu_busy = sum(busy) / len(busy) if busy else None
    return job


def _counted(number: int, word: str) -> str:
    return f"{number} {word}{'' if number == 1 else 's'}"


def _work(ranks: list[dict[str, Any]]) -> float | None:
    """Return the seconds in which a gang ran, without those in the queue between its starts."""
    spans: dict[int, tuple[float, float]] = {}
    for rank in ranks:
        if "start" in rank and "wall_s" in rank:
            first, last = spans.get(rank["try"], (rank["start"], 0.0))
            end = rank["start"] + rank["wall_s"]
            spans[rank["try"]] = min(first, rank["start"]), max(last, end)
    return sum(last - first for first, last in spans.values()) if spans else None


def _run(*command: str) -> str:
    done = client.call(*command, timeout=120)
    return done.stdout if done is not None and done.returncode == 0 else ""


def _instant(text: str | None) -> float | None:
    """Return 2026-01-31T12:00:00 as seconds; None for Unknown and the like."""
    try:
        return time.mktime(time.strptime(text or "", "%Y-%m-%dT%H:%M:%S"))
    except ValueError:
        return None


def _duration(text: str) -> float:
    """Return [days-][hours:]minutes:seconds as seconds."""
    days, _, rest = text.rpartition("-")
    seconds = 0.0
    for part in rest.split(":"):
        seconds = 60 * seconds + float(part or 0)
    return seconds + 86400 * int(days or 0)


def _megabytes(text: str) -> float:
    """Return Slurm's 1500M, whose units are binary, in decimal megabytes; 0 for nothing."""
    try:
        return parse_size(re.sub(r"([KMGT])$", r"\1iB", text.strip())) / 1e6
    except UserError:
        return 0.0
