"""Snakemake is killed on the login node while jobs run; `mlcd run` goes on, with one writer."""

from __future__ import annotations

import pytest
from project import Project, wait_for


def with_running_job(stage: str, project: Project, site) -> None:
    """Return when a job of the stage does its work."""
    if stage == "train":
        wait_for(lambda: project.steps_trained() >= 6, "six steps of training")
        return
    project.running(stage)
    if stage == "download":
        wait_for(lambda: site.asked, "the first transfer")


@pytest.mark.parametrize("stage", ["download", "embed", "cluster", "train"])
def test_it_is_killed_in(stage, undisturbed, again, site):
    project = again(stage)
    project.write_profile({"train": "checkpoint_every: 5"})
    site.delay = 2.0
    options = ["--until", stage]
    head = project.start(*options)
    with_running_job(stage, project, site)
    head.kill()
    before = project.jobs(stage)
    site.delay = 0.0

    second = project.start(*options, program="mlcd run").finish()

    assert project.hashes(stage) == undisturbed.hashes(stage)
    after = {job["JobId"]: job for job in project.jobs(stage)}
    # Those that worked were left to finish, and nothing wrote beside them.
    for job in before:
        if job["JobState"] == "RUNNING":
            assert after[job["JobId"]]["JobState"] == "COMPLETED", second.text[-3000:]
    if stage in ("cluster", "train"):
        assert len(after) == 1, "the gang was to be taken over, not submitted again"
