"""Leases whose holder runs in a Slurm job elsewhere, and the jobs that a killed Snakemake left."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from gangs import slurm, wait_for

from mlcd.commands.run import _settle_old_jobs
from mlcd.launch import lease
from mlcd.launch.lease import Lease
from mlcd.slurm.client import ask
from mlcd.utils.processes import this_process

pytestmark = pytest.mark.timeout(300)


def submit(folder: Path, *options: str, seconds: int = 300) -> str:
    return slurm("sbatch", "--parsable", f"--chdir={folder}", "--output=/dev/null", *options,
                 f"--wrap=sleep {seconds}").strip()  # fmt: skip


def planted(folder: Path, job: str) -> Lease:
    """Return a lease that waits for one of another machine, held by a process of `job`."""
    folder.mkdir()
    holder = {**this_process(), "machine": "another", "host": "node2", "job": job}
    (folder / "000001.json").write_text(json.dumps(holder))
    return Lease(folder, "x", [folder / "none"])


def test_a_silent_holder_counts_as_long_as_its_job_runs(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "_DOUBT", 1.0)
    monkeypatch.setattr(lease, "LEASE", 2.0)
    job = submit(tmp_path)
    wait_for(lambda: ask(job).state == "RUNNING")
    mine = planted(tmp_path / "lease", job)
    end = time.monotonic() + 5
    while time.monotonic() < end:
        assert mine.attempt()["job"] == job
        time.sleep(0.3)
    slurm("scancel", job)
    wait_for(lambda: mine.attempt() is None, 30)
    mine.release()


def test_a_requeued_job_has_lost_its_lease(cluster, tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "_DOUBT", 1.0)
    job = submit(tmp_path, "--requeue")
    wait_for(lambda: ask(job).state == "RUNNING")
    mine = planted(tmp_path / "lease", job)
    slurm("scontrol", "requeue", job)
    wait_for(lambda: mine.attempt() is None, 30)
    mine.release()
    slurm("scancel", job)


def test_of_a_dead_heads_jobs_those_in_the_queue_are_canceled_and_others_waited_for(
    cluster, tmp_path
):
    comment = "--comment=rule_embed_wildcards_first-00000"
    running = submit(tmp_path, comment, "--requeue", seconds=15)
    waiting = submit(tmp_path, comment, "--hold")
    (tmp_path / "other").mkdir()
    (tmp_path / ".snakemake" / "slurm_logs").mkdir(parents=True)
    others = [submit(tmp_path / "other", comment, "--hold"), submit(tmp_path, "--hold")]
    wait_for(lambda: ask(running).state == "RUNNING")
    begun = time.monotonic()
    _settle_old_jobs(tmp_path)
    assert time.monotonic() - begun > 5
    assert ask(waiting).state == "CANCELLED"
    assert ask(running).state == "COMPLETED"
    assert ask(running).details["Requeue"] == "0"
    assert [ask(other).state for other in others] == ["PENDING", "PENDING"]
    slurm("scancel", *others)
