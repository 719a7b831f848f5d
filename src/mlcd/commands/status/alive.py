"""Who works for a folder of results now: Snakemake, a training by hand, or a gang that outlives it.

All of it is seen from outside, by the clocks of this machine and of the disk.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from mlcd.data.trainings import STAGES
from mlcd.launch import gang_files
from mlcd.launch.lease import LEASE, describe, is_gone, live_holder
from mlcd.launch.snakemake import announced, locked


def worker(results: Path, project: Path | None) -> str:
    """Return who works for the results, in words; '' if nobody does, as far as files tell.

    `project`: the folder that Snakemake works in for them, if there is one.
    """
    return (snakemake(project) if project else "") or writer(results)


def snakemake(project: Path) -> str:
    """Return which Snakemake works in the folder, in words; '' for none."""
    if holder := live_holder(project / ".snakemake" / "mlcd-run"):
        return describe(holder)
    if locked(project) and (process := announced(project)) and not is_gone(process, 0):
        return describe(process)
    return ""


def writer(results: Path) -> str:
    """Return who trains in the results, in words; '' for nobody."""
    for stage in STAGES:
        # The driver holds the lease; a gang may outlive it.
        if holder := live_holder(results / "state" / f"{stage}.lease"):
            return describe(holder)
        for path in results.glob(f"{stage}/state/*.gang/job.json"):
            record = gang_files.Record.read(path.parent)
            if record is None:
                continue
            files = gang_files.newest_try(path.parent / record.token)
            over = (files / gang_files.FAILED).exists() or all(
                (files / f"rank-{rank}.done").exists() for rank in range(record.ranks)
            )
            if not over and is_heard(silence(files, record.ranks)):
                return f"{record.launcher} job {record.job_id}"
    return ""


def silence(files: Path, ranks: int) -> float | None:
    """Return the seconds since the last sign of life of a gang's ranks; None without any."""
    beats = []
    for rank in range(ranks):
        with contextlib.suppress(OSError):
            beats.append((files / f"rank-{rank}.usage.json").stat().st_mtime)
    return max(0.0, time.time() - max(beats)) if beats else None


def is_heard(silence: float | None) -> bool:
    """True if ranks that were silent for so long may still work."""
    return silence is not None and silence < LEASE
