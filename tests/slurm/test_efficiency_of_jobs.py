"""What jobs of the real cluster took, read back from Slurm and from Snakemake's logs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from mlcd.stages.report.accounts import ask_slurm
from mlcd.stages.report.runlog import read_logs

SNAKEFILE = """
rule all:
    input: "results/a", "results/b"

rule work:
    output: "results/{name}"
    benchmark: "results/benchmarks/{name}.tsv"
    threads: 2
    resources: mem_mb=600, runtime=5
    shell: "python3 work.py && touch {output}"
"""
WORK = """
import time
held = bytearray(b"1" * 200_000_000)
while time.process_time() < 4:
    pass
"""


def accounting() -> bool:
    told = subprocess.run(["sacct", "--noheader"], capture_output=True)
    return told.returncode == 0


def test_queue_run_and_use_of_jobs_are_known(cluster, tmp_path, monkeypatch):
    (tmp_path / "Snakefile").write_text(SNAKEFILE)
    (tmp_path / "work.py").write_text(WORK)
    done = subprocess.run(
        [sys.executable, "-m", "snakemake", "--executor", "slurm", "--jobs", "2",
         "--slurm-status-command", "squeue", "--slurm-init-seconds-before-status-checks", "1",
         "--slurm-keep-successful-logs", "--latency-wait", "20",
         "--default-resources", "slurm_partition=main"],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=250,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    monkeypatch.chdir(tmp_path)
    jobs = read_logs(Path(".snakemake/log").glob("*.log"), "results")
    assert [job.rule for job in jobs] == ["work", "work"]
    for job in jobs:
        # By our own records alone.
        assert job.slurm_id and job.queue is not None
        assert 4 <= job.run < 60 and job.threads == 2 and job.memory_asked == 600
        assert job.cpu >= 2 and 150 < job.memory < 600
    own = [job.queue for job in jobs]
    assert ask_slurm(jobs) == ("sacct" if accounting() else "scontrol")
    for job, before in zip(jobs, own, strict=True):
        assert 0 <= job.queue <= before
        # Slurm counts the job's start and Snakemake's own, which takes seconds.
        assert job.run > 4
