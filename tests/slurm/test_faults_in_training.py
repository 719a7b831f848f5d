"""The training's job is disturbed between steps; it goes on and the encoder is the same."""

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
    """A function: the profile's names → a project, its head and its job, some steps on.

    The ranks stand still: a test that does not end them lets them go on by :func:`thaw`.
    """

    def start(**names: str):
        project = again("train")
        project.write_profile({"train": "checkpoint_every: 5"}, **names)
        head = project.start("results/train/encoder.safetensors")
        wait_for(lambda: project.steps_trained() >= 6, "six steps of training")
        (job,) = project.jobs("train")
        # A quick machine would be done before Slurm has acted.
        for rank in project.ranks():
            rank.suspend()
        assert job["JobState"] == "RUNNING"
        return project, head, job

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


def test_a_cancelled_training_is_tried_again(undisturbed, training):
    project, head, job = training()
    subprocess.run(["scancel", job["JobId"]], check=True)
    head.finish()
    assert [job["JobState"] for job in project.jobs("train")] == ["CANCELLED", "COMPLETED"]
    assert project.hashes("train") == undisturbed.hashes("train")


def test_a_training_at_its_time_limit_goes_on(undisturbed, training):
    # Warned 45 s before the end. What is left takes the next start a fraction of three minutes.
    project, head, job = training(time_limit=3)
    assert job["TimeLimit"] == "00:03:00"
    wait_for(lambda: told_to_stop(project) or restarted(project), "the signal before the limit")
    thaw(project)
    head.finish()
    assert "told to stop: saved" in head.text
    (job,) = project.jobs("train")
    # Twice on a machine so crowded that the rest took as long again.
    assert job["JobState"] == "COMPLETED" and int(job["Restarts"]) >= 1
    assert project.hashes("train") == undisturbed.hashes("train")


def test_a_requeued_training_goes_on(undisturbed, training):
    project, head, job = training()
    scontrol("requeue", job["JobId"])
    head.finish()
    assert_went_on(project, undisturbed)


def test_a_node_goes_down_in_training(undisturbed, training, cluster):
    project, head, job = training()
    cluster.set_node(job["BatchHost"], "down")
    head.finish()
    assert_went_on(project, undisturbed)


def test_a_training_is_pushed_off_without_grace(undisturbed, training):
    project, head, job = training()
    push_off(job)
    head.finish()
    assert_went_on(project, undisturbed)


def test_a_training_is_pushed_off_with_grace(undisturbed, training):
    project, head, job = training(partition="grace")
    push_off(job)
    head.finish()
    assert_went_on(project, undisturbed)


def test_the_controller_is_away_for_45_seconds(undisturbed, training, cluster):
    project, head, job = training()
    controller = cluster.controller()
    controller.suspend()
    thaw(project)
    time.sleep(45)
    controller.resume()
    head.finish()
    (job,) = project.jobs("train")
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "0")
    assert project.hashes("train") == undisturbed.hashes("train")
