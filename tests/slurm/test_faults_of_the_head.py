"""Snakemake is killed on the login node while jobs run; the same command goes on."""

from __future__ import annotations

import pytest
from project import wait_for


@pytest.mark.parametrize("stage", ["download", "embed", "cluster"])
def test_it_is_killed_in(stage, undisturbed, again, site):
    project = again(stage)
    if stage == "download":
        site.delay = 2.0
    head = project.start("--until", stage)
    project.running(stage)
    if stage == "download":
        wait_for(lambda: site.asked, "the first transfer")
    head.kill()
    site.delay = 0.0
    project.start_again("--until", stage).finish()
    assert project.hashes(stage) == undisturbed.hashes(stage)


def test_it_is_killed_in_training(undisturbed, again):
    project = again("train")
    project.write_profile({"train": "checkpoint_every: 5"})
    head = project.start("results/train/encoder.safetensors")
    wait_for(lambda: project.steps_trained() >= 12, "twelve steps of training")
    head.kill()
    project.start_again("results/train/encoder.safetensors").finish()
    (job,) = project.jobs("train")
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "0")
    assert project.hashes("train") == undisturbed.hashes("train")
