"""Snakemake is killed on the login node while jobs run; `mlcd run` continues, with one writer."""

from __future__ import annotations

import pytest
from project import SMALL, Project, wait_for

from helpers.checkout import CONFIG

#: A key of each section that decides the result, and another value of it.
OTHER = {"download": {"rows_per_tar": 5}, "embed": {"image_size": 48}, "cluster": {"iterations": 3},
         "train": {"epochs": 19}}  # fmt: skip


def with_running_job(stage: str, project: Project, site) -> None:
    """Return when a job of the stage does its work."""
    if stage == "train":
        wait_for(lambda: project.steps_trained() >= 6, "six steps of training", 600)
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
    snakemake = project.start(*options)
    with_running_job(stage, project, site)
    snakemake.kill()
    before = project.jobs(stage)
    site.delay = 0.0

    second = project.start(*options, program="mlcd run").finish()

    assert project.hashes(stage) == undisturbed.hashes(stage)
    after = {job["JobId"]: job["JobState"] for job in project.jobs(stage)}
    # Those that worked were left to finish, and nothing was made twice.
    for job in before:
        if job["JobState"] == "RUNNING":
            assert after[job["JobId"]] == "COMPLETED", second.text[-3000:]
    wanted = 4 if stage in ("download", "embed") else 1
    assert list(after.values()).count("COMPLETED") == wanted, after
    # What outlived its Snakemake is stale as soon as its section changes.
    project.configure(**{**SMALL, stage: {**CONFIG[stage], **SMALL.get(stage, {}), **OTHER[stage]}})
    assert project.stale("--until", stage)[stage] == wanted
