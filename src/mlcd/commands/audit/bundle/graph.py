"""rules.dot and jobs.dot: which rule waited for which, and which job read whose files (Graphviz).

The first is Snakemake's own, kept when the run was sealed. The second follows from the hashes in
the lock: it is what happened, whoever ran it.
"""

from __future__ import annotations

import json
from pathlib import Path

from mlcd.commands.audit import lock as locks
from mlcd.commands.audit.bundle.jobs import by_stage, jobs_of
from mlcd.commands.audit.bundle.run import Run

NAME = "graph"
#: Jobs up to which each is a node; of more of them a stage is one.
MOST_JOBS = 200


def write(run: Run, folder: Path) -> list[Path]:
    """Write both graphs; that of the rules only if the run was sealed by the workflow."""
    written = []
    rules = run.record(locks.RULES.as_posix())
    if rules is not None and rules["rules"]:
        written.append(_draw(rules["rules"], folder / "rules.dot"))
    jobs = jobs_of(run.lock)
    if len(jobs) > MOST_JOBS:
        jobs = by_stage(jobs)
    written.append(_draw({job.name: list(job.jobs) for job in jobs}, folder / "jobs.dot"))
    return written


def _draw(before: dict[str, list[str]], path: Path) -> Path:
    """Write a graph: node → nodes that come before it."""
    lines = [f"digraph {path.stem} {{", " rankdir = LR;", " node [shape = box, style = rounded];"]
    lines += [f" {_quoted(name)};" for name in before]
    lines += [f" {_quoted(one)} -> {_quoted(name)};" for name in before for one in before[name]]
    path.write_text("\n".join([*lines, "}"]) + "\n", encoding="utf-8")
    return path


def _quoted(name: str) -> str:
    return json.dumps(name, ensure_ascii=False)
