"""Part `efficiency`: what the run took by rule: queue, time; cores, memory, GPUs used and asked.

Unlike the other parts it is about one run on one machine: times differ from run to run.
"""

from __future__ import annotations

import csv
import io
import re
import statistics
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from matplotlib.figure import Figure

from mlcd.config import Report
from mlcd.stages.report.accounts import ask_slurm, gang_jobs
from mlcd.stages.report.page import Drawing, table
from mlcd.stages.report.runlog import Job, read_logs
from mlcd.utils import charts
from mlcd.utils.units import decimal_size, duration

#: Columns of the CSV, one row per job: attributes of :class:`Job`.
COLUMNS = ("rule", "wildcards", "slurm_id", "state", "queue", "run", "cpu", "threads", "memory",
           "memory_asked", "gpus", "gpu_busy", "nodes")  # fmt: skip


def draw(section: Report, folder: str, snakemake: str) -> Drawing:
    """Draw the cost of the jobs that wrote into `folder`, by the logs below `snakemake`."""
    logs = (Path(snakemake) / "log").glob("*.log")
    # The local rules that wait for gangs took nothing themselves.
    gangs = gang_jobs((Path(folder) / "logs" / "gang").glob("*.jsonl"))
    stages = {job.rule for job in gangs}
    jobs = [job for job in read_logs(logs, folder) if job.rule not in stages]
    jobs = [job for job in jobs if job.state != "unknown" and job.rule != "report_efficiency"]
    source = ask_slurm(jobs)
    jobs += gangs
    if not jobs:
        # No reason to fail a run at its very end.
        about = "Snakemake's logs (.snakemake/log) are gone, or the run was made elsewhere."
        return Drawing("No job of this run is known here", about, rows=_csv(jobs))
    rules = sorted({job.rule for job in jobs}, key=lambda rule: -_hours(_of(jobs, rule))[1])
    title = f"{len(jobs):,} jobs held cores for {_core_hours(_hours(jobs)[1])}"
    if known := _measured(jobs):
        title += f", and worked {_share(*_hours(known))} of it"
    gpu_hours = sum(job.gpus * (job.run or 0.0) for job in jobs) / 3600
    lead = f"{sum(job.state == 'failed' for job in jobs)} attempts failed. "
    if gpu_hours:
        lead += f"GPUs were held for {gpu_hours:,.1f} hours. "
    if any(job.slurm_id for job in jobs):
        told = {"sacct": "Slurm's accounts (sacct)", "scontrol": "Slurm's controller (scontrol)"}
        lead += f"Queue and run times from {told.get(source, 'the logs of the jobs')}. "
    lead += (
        "Cores: seconds at work of the seconds held. Memory: the largest job of what it asked "
        "for; a rule far below could ask for less. – stands where nothing was measured."
    )
    body = table(
        ["rule", "jobs", "failed", "nodes", "queue, median", "longest", "run, median", "longest",
         "core hours", "cores at work", "memory", "of asked", "GPUs at work"],
        [_row(rule, _of(jobs, rule)) for rule in rules],
        numbers=tuple(range(1, 13)),
    )  # fmt: skip
    with charts.style():
        chart = _chart([(rule, *_hours(_of(jobs, rule))) for rule in rules])
    return Drawing(title, lead, body, chart, rows=_csv(jobs))


def _of(jobs: Iterable[Job], rule: str) -> list[Job]:
    return [job for job in jobs if job.rule == rule]


def _measured(jobs: Iterable[Job]) -> list[Job]:
    return [job for job in jobs if job.cpu is not None and job.run]


def _hours(jobs: Iterable[Job]) -> tuple[float, float]:
    """Return core hours at work and held."""
    used = held = 0.0
    for job in jobs:
        held += job.threads * (job.run or 0.0) / 3600
        used += (job.cpu or 0.0) / 3600
    return used, held


def _row(rule: str, jobs: list[Job]) -> list[str]:
    queues = [job.queue for job in jobs if job.queue is not None]
    runs = [job.run for job in jobs if job.run is not None]
    known = _measured(jobs)
    sized = [job for job in jobs if job.memory]
    largest = max(sized, key=lambda job: job.memory or 0.0) if sized else None
    busy = [job.gpu_busy for job in jobs if job.gpu_busy is not None]
    return [
        rule,
        f"{len(jobs):,}",
        f"{sum(job.state == 'failed' for job in jobs):,}",
        _nodes(jobs),
        duration(statistics.median(queues)) if queues else "–",
        duration(max(queues)) if queues else "–",
        duration(statistics.median(runs)) if runs else "–",
        duration(max(runs)) if runs else "–",
        f"{_hours(jobs)[1]:,.2f}",
        _share(*_hours(known)) if known else "–",
        decimal_size((largest.memory or 0.0) * 1e6) if largest else "–",
        _share(largest.memory or 0.0, largest.memory_asked or 0.0) if largest else "–",
        f"{statistics.mean(busy):.0%}" if busy else "–",
    ]


def _nodes(jobs: Iterable[Job]) -> str:
    """Return on how many nodes jobs of a rule were, all together."""
    known = {name for job in jobs for name in _split(job.nodes)}
    return f"{len(known):,}" if known else "–"


def _split(nodes: str) -> Iterator[str]:
    """Iterate over the names of a list as Slurm writes it: a,b or n[1-3,07]."""
    for stem, ranges, end in re.findall(r"([^,\[]+)(?:\[([^\]]*)\])?([^,\[]*)", nodes):
        if not ranges:
            yield stem + end
        for part in ranges.split(",") if ranges else ():
            first, _, last = part.partition("-")
            for number in range(int(first), int(last or first) + 1):
                yield f"{stem}{number:0{len(first)}}{end}"


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else "–"


def _core_hours(hours: float) -> str:
    return f"{hours:,.0f} core hours" if hours >= 10 else f"{hours * 60:,.0f} core minutes"


def _chart(rules: Sequence[tuple[str, float, float]]) -> Figure:
    """Draw core minutes held and at work by rule."""
    chart = charts.figure(height=0.9 + 0.3 * len(rules))
    axes = chart.subplots()
    places = range(len(rules))
    axes.barh(places, [60 * held for *_, held in rules], color=charts.GRID, label="held")
    axes.barh(places, [60 * used for _, used, _ in rules], height=0.5, color=charts.BLUE,
              label="at work")  # fmt: skip
    axes.set_yticks(list(places), [rule for rule, *_ in rules])
    axes.invert_yaxis()
    axes.set_xlabel("core minutes")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    charts.grid_only(axes, "x")
    chart.legend(loc="outside upper left", ncols=2)
    return chart


def _csv(jobs: Iterable[Job]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for job in jobs:
        values = [getattr(job, column) for column in COLUMNS]
        writer.writerow(
            ["" if v is None else round(v, 3) if isinstance(v, float) else v for v in values]
        )
    return text.getvalue()
