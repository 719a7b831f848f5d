"""The test cluster itself: four nodes, GPUs counted, three partitions, nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from cluster import missing

pytestmark = pytest.mark.short

TOOL = Path(__file__).parent / "cluster.py"


def _srun(*arguments: str) -> str:
    done = subprocess.run(["srun", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_job_spreads_over_the_nodes_and_sees_its_gpus(cluster):
    told = _srun(
        "--nodes=4", "--ntasks-per-node=1", "--gres=gpu:1",
        "bash", "-c", "echo $SLURMD_NODENAME $CUDA_VISIBLE_DEVICES",
    )  # fmt: skip
    assert sorted(told.split("\n")[:-1]) == [f"node{i} 0" for i in range(1, 5)]


def test_a_second_cluster_in_its_place_is_refused(cluster):
    done = subprocess.run([sys.executable, TOOL, "up"], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert f"a test cluster is up in {cluster.folder}" in done.stderr


def test_it_needs_root_and_says_so(cluster):
    os.seteuid(65534)
    try:
        told = missing()
    finally:
        os.seteuid(0)
    assert "needs root" in told
    assert missing() == ""


def test_absent_packages_are_named_with_the_command(cluster, monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    assert missing() == (
        "not installed: slurmctld, slurmd, slurm-client; "
        "try: apt-get install -y slurmctld slurmd slurm-client"
    )
