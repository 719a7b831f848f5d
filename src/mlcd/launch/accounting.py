"""One line per job: what a gang took, for a table of cost. No stage reads it."""

from __future__ import annotations

import contextlib
import json
import time
from pathlib import Path
from typing import Any

from mlcd.launch.gang_files import Record
from mlcd.launch.jobs import Job
from mlcd.utils import disk
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER

#: In a job's folder, once its line is written: several drivers may see the end of one job.
_WRITTEN = "recorded"


def append_record(path: Path | None, stage: str, job: Job) -> None:
    """Append the line of a job that has ended; docs/reference/formats.md describes it."""
    if path is None or not job.has_accounts or (job.folder / _WRITTEN).exists():
        return
    status = job.status()
    record = Record.read(job.folder.parent)
    ranks = []
    for folder in sorted(job.folder.glob("try-*"), key=lambda found: int(found.name[4:])):
        ranks += _ranks(folder)
    last = max((rank["try"] for rank in ranks), default=0)
    starts = [rank["start"] for rank in ranks]
    ends = [rank["start"] + rank["wall_s"] for rank in ranks if "wall_s" in rank]
    line = {
        "stage": stage,
        "launcher": job.launcher,
        "job_id": job.job_id,
        "state": "COMPLETED" if len(job.done()) == job.ranks else status.state or "FAILED",
        "tries": len(list(job.folder.glob("try-*"))),
        "submitted": _iso(record.submitted) if record else None,
        "start": _iso(min(starts)) if starts else None,
        "end": _iso(max(ends)) if ends else None,
        # Of its newest start: each may have been on others, as stands with the ranks.
        "nodes": sorted({rank["node"] for rank in ranks if rank["try"] == last}),
        "asked": {
            name: status.details[field]
            for name, field in (("cpus", "NumCPUs"), ("time_limit", "TimeLimit"), ("tres", "TRES"))
            if field in status.details
        },
        "ranks": ranks,
    }
    try:
        with disk.writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a", encoding="utf-8") as handle:
                handle.write(json.dumps(line) + "\n")
            (job.folder / _WRITTEN).touch()
    except UserError as error:
        # The results do not rest on it.
        LOGGER.warning("the job is missing in the table of cost: %s", error)


def _ranks(folder: Path) -> list[dict[str, Any]]:
    """Return place and use of each rank of one start of the job."""
    found = []
    for path in sorted(folder.glob("rank-[0-9]*.json")):
        if path.name.endswith(".usage.json"):
            continue
        rank = int(path.stem.split("-")[1])
        place = json.loads(path.read_text())
        entry = {"try": int(folder.name[4:]), "rank": rank, "node": place["node"],
                 "start": place["start"]}  # fmt: skip
        with contextlib.suppress(FileNotFoundError, ValueError):
            entry |= json.loads((folder / f"rank-{rank}.usage.json").read_text())
        found.append(entry)
    return sorted(found, key=lambda entry: entry["rank"])


def _iso(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(seconds))
