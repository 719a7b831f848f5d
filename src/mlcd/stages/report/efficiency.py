"""Part `efficiency`: what the run took by rule: queue, time; cores, memory, GPUs used and asked.

Unlike the other parts it is about one run on one machine: times differ from run to run.
"""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from markupsafe import Markup
from matplotlib.figure import Figure

from mlcd.config import Report
from mlcd.stages.report.accounts import ask_slurm, gang_jobs, split_nodes
from mlcd.stages.report.page import Drawing, sections, table
from mlcd.stages.report.runlog import Job, read_logs
from mlcd.utils import charts
from mlcd.utils.units import decimal_size, duration

#: Columns of the CSV, one row per job: attributes of :class:`Job`.
COLUMNS = ("rule", "wildcards", "slurm_id", "state", "queue", "run", "cpu", "threads", "memory",
           "memory_asked", "gpus", "gpu_busy", "nodes", "tries", "started", "ended")  # fmt: skip
#: Nodes that are listed at most.
_NODES = 40
#: Rules with less than this share of all core time are drawn as one bar.
_SMALL = 0.01


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
    title = f"{_counted(jobs)} held {_core_hours(_hours(jobs)[1])}"
    if known := _measured(jobs):
        title += f", and worked {_share(*_hours(known))} of them"
    gpu_hours = sum(job.gpus * (job.run or 0.0) for job in jobs) / 3600
    lead = f"{sum(job.state == 'failed' for job in jobs) or 'No'} tries failed. "
    if gpu_hours:
        lead += f"GPUs were held for {gpu_hours:,.1f} hours. "
    if any(job.slurm_id for job in jobs):
        told = {"sacct": "Slurm's accounts (sacct)", "scontrol": "Slurm's controller (scontrol)"}
        lead += f"Queue and run times from {told.get(source, 'the logs of the jobs')}. "
    lead += (
        "Cores: time at work of the time held. Memory: the largest job, and its share of what it "
        "asked for; a rule far below could ask for less. – stands where nothing was measured."
    )
    body = table(
        ["rule", "jobs", "tries", "failed", "nodes", "queue, median (longest)",
         "run, median (longest)", "core time", "cores at work", "memory", "of asked",
         "GPUs at work"],
        [_row(rule, _of(jobs, rule)) for rule in rules],
        numbers=tuple(range(1, 12)),
    )  # fmt: skip
    if nodes := _by_node(jobs):
        body = sections(("By rule", body), ("By node", nodes))
    with charts.style():
        chart = _chart([(rule, *_hours(_of(jobs, rule))) for rule in rules])
    return Drawing(title, lead, body, chart, rows=_csv(jobs))


def _jobs_and_tries(jobs: Sequence[Job]) -> tuple[int, int]:
    """Return how many jobs there were, and how many starts of them."""
    different = {(job.rule, job.outputs or job.wildcards) for job in jobs}
    return len(different), sum(job.tries for job in jobs)


def _counted(jobs: Sequence[Job]) -> str:
    count, tries = _jobs_and_tries(jobs)
    said = f"{count:,} job{'s' * (count != 1)}"
    return said if tries == count else f"{said} in {tries:,} tries"


def _by_node(jobs: Sequence[Job]) -> Markup | None:
    """Return a table of the nodes, busiest first; of a job on several each has its equal part."""
    found: dict[str, list[tuple[Job, float]]] = {}
    for job in jobs:
        names = list(split_nodes(job.nodes))
        for name in names:
            found.setdefault(name, []).append((job, 1 / len(names)))
    if not found:
        return None
    rows = []
    for name, parts in found.items():
        held = sum(part * _hours([job])[1] for job, part in parts)
        failed = sum(job.state == "failed" for job, _ in parts)
        rules = sorted({job.rule for job, _ in parts if not job.rule.startswith("report")})
        rows.append((held, name, [name, f"{len(parts):,}", f"{failed:,}", _time(held),
                                  ", ".join(rules) or "report"]))  # fmt: skip
    rows.sort(key=lambda row: (-row[0], row[1]))
    columns = ["node", "tries", "failed", "core time", "rules"]
    return table(columns, [row for *_, row in rows[:_NODES]], numbers=(1, 2, 3))


def _time(hours: float) -> str:
    return duration(3600 * hours)


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
    count, tries = _jobs_and_tries(jobs)
    return [
        rule,
        f"{count:,}",
        f"{tries:,}",
        f"{sum(job.state == 'failed' for job in jobs):,}",
        _nodes(jobs),
        _spread(queues),
        _spread(runs),
        _time(_hours(jobs)[1]),
        _share(*_hours(known)) if known else "–",
        decimal_size((largest.memory or 0.0) * 1e6) if largest else "–",
        _share(largest.memory or 0.0, largest.memory_asked or 0.0) if largest else "–",
        f"{statistics.mean(busy):.0%}" if busy else "–",
    ]


def _spread(seconds: Sequence[float]) -> str:
    """Return median and greatest; one of them where they are equal in words."""
    if not seconds:
        return "–"
    middle, most = duration(statistics.median(seconds)), duration(max(seconds))
    return middle if middle == most else f"{middle} ({most})"


def _nodes(jobs: Iterable[Job]) -> str:
    """Return on how many nodes jobs of a rule were, all together."""
    known = {name for job in jobs for name in split_nodes(job.nodes)}
    return f"{len(known):,}" if known else "–"


def _share(part: float, whole: float) -> str:
    return f"{part / whole:.0%}" if whole else "–"


def _core_hours(hours: float) -> str:
    return f"{hours:,.0f} core hours" if hours >= 10 else f"{hours * 60:,.0f} core minutes"


def _chart(rules: Sequence[tuple[str, float, float]]) -> Figure:
    """Draw core time held and at work by rule; rules that took little are one bar."""
    total = sum(held for *_, held in rules)
    shown = [rule for rule in rules if rule[2] >= _SMALL * total]
    if small := [rule for rule in rules if rule[2] < _SMALL * total]:
        shown.append((
            f"{len(small)} smaller rules",
            sum(used for _, used, _ in small), sum(held for *_, held in small),
        ))  # fmt: skip
    unit, scale = ("hours", 1) if total >= 10 else ("minutes", 60)
    chart = charts.figure(height=1.1 + 0.32 * len(shown))
    axes = chart.subplots()
    places = range(len(shown))
    wide = axes.barh(places, [scale * held for *_, held in shown], color=charts.GRAY, label="held")
    axes.barh(places, [scale * used for _, used, _ in shown], height=0.5, color=charts.BLUE,
              label="at work")  # fmt: skip
    words = [(rule, f"held {_time(held)}, at work {_time(used)}") for rule, used, held in shown]
    charts.note_bars(axes, wide, words)
    axes.set_yticks(list(places), [rule for rule, *_ in shown])
    axes.invert_yaxis()
    axes.set_xlabel(f"core {unit}")
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
