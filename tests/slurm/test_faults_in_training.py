"""The training's job is disturbed between steps; it continues and the encoder is the same."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from pathlib import Path

import pytest
from project import Project, scontrol, wait_for


@pytest.fixture
def training(again):
    """A function: the profile's names → a project, its Snakemake and its job, some steps on.

    The ranks stand still: a test that does not end them lets them continue by :func:`thaw`.
    """

    def start(**names: str):
        project = again("train")
        project.write_profile({"train": "checkpoint_every: 5"}, **names)
        snakemake = project.start("results/train/encoder.safetensors")
        wait_for(lambda: project.steps_trained() >= 6, "six steps of training")
        (job,) = project.jobs("train")
        # A quick machine would be done before Slurm has acted.
        for rank in project.ranks():
            rank.suspend()
        assert job["JobState"] == "RUNNING"
        return project, snakemake, job

    return start


def thaw(project: Project) -> None:
    for rank in project.ranks():
        rank.resume()


def told_to_stop(project: Project) -> bool:
    """True if SIGUSR2 waits for every rank."""
    bit = 1 << (signal.SIGUSR2 - 1)
    ranks = project.ranks()
    pending = [
        int(re.search(r"ShdPnd:\s*(\w+)", Path(f"/proc/{rank.pid}/status").read_text())[1], 16)
        for rank in ranks
    ]
    return bool(ranks) and all(signals & bit for signals in pending)


def push_off(job: dict[str, str]) -> None:
    """Submit a job of the partition high that needs the nodes of `job` for itself."""
    order = ["--partition=high", f"--nodelist={job['NodeList']}", f"--nodes={job['NumNodes']}",
             "--exclusive", "--job-name=urgent", "--output=/dev/null", "--chdir=/",
             "--wrap=sleep 3"]  # fmt: skip
    subprocess.run(["sbatch", *order], check=True, capture_output=True)


def restarted(project: Project) -> bool:
    """True if the one gang job has been put back into the queue."""
    return [int(job["Restarts"]) >= 1 for job in project.jobs("train")] == [True]


def assert_went_on(project: Project, undisturbed: Project) -> None:
    """One job, started twice; the same encoder, and not all steps trained again."""
    (job,) = project.jobs("train")
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1")
    assert project.hashes("train") == undisturbed.hashes("train")


def test_a_canceled_training_is_tried_again(undisturbed, training):
    project, snakemake, job = training()
    subprocess.run(["scancel", job["JobId"]], check=True)
    snakemake.finish()
    assert [job["JobState"] for job in project.jobs("train")] == ["CANCELLED", "COMPLETED"]
    assert project.hashes("train") == undisturbed.hashes("train")


def test_a_training_at_its_time_limit_resumes(undisturbed, training):
    # Warned 45 s before the end. What is left takes the next start a fraction of three minutes.
    project, snakemake, job = training(time_limit=3)
    assert job["TimeLimit"] == "00:03:00"
    wait_for(lambda: told_to_stop(project) or restarted(project), "the signal before the limit")
    thaw(project)
    snakemake.finish()
    assert "told to stop: saved" in snakemake.text
    (job,) = project.jobs("train")
    # Twice on a machine so crowded that the rest took as long again.
    assert job["JobState"] == "COMPLETED" and int(job["Restarts"]) >= 1
    assert project.hashes("train") == undisturbed.hashes("train")


def test_a_requeued_training_resumes(undisturbed, training):
    project, snakemake, job = training()
    scontrol("requeue", job["JobId"])
    snakemake.finish()
    assert_went_on(project, undisturbed)


def test_a_node_goes_down_in_training(undisturbed, training, cluster):
    project, snakemake, job = training()
    cluster.set_node(job["BatchHost"], "down")
    snakemake.finish()
    assert_went_on(project, undisturbed)


def test_a_training_is_pushed_off_without_grace(undisturbed, training):
    project, snakemake, job = training()
    push_off(job)
    snakemake.finish()
    assert_went_on(project, undisturbed)


def test_a_training_is_pushed_off_with_grace(undisturbed, training):
    project, snakemake, job = training(partition="grace")
    push_off(job)
    snakemake.finish()
    assert_went_on(project, undisturbed)


def test_the_controller_is_away_for_45_seconds(undisturbed, training, cluster):
    project, snakemake, job = training()
    controller = cluster.controller()
    controller.suspend()
    thaw(project)
    time.sleep(45)
    controller.resume()
    snakemake.finish()
    (job,) = project.jobs("train")
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "0")
    assert project.hashes("train") == undisturbed.hashes("train")
