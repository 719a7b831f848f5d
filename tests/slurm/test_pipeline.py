"""The whole pipeline on four nodes gives what one machine gives, and real jobs made it."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pandas as pd
import pytest
from project import STAGES

#: Chunk stages run a job for each of the four chunks.
CHUNK_STAGES = ["prepare", "download", "embed", "label"]


@pytest.mark.short
def test_everything_on_four_nodes_equals_one_machine(undisturbed, again, tmp_path):
    # One machine with as many ranks: the order of a sum over ranks decides the last bits.
    alone = undisturbed.copy(tmp_path / "alone", "train")
    done = alone.snakemake("--until", "train", "--set-resources", "train:ranks_per_node=4")
    assert done.returncode == 0, done.stdout[-6000:]

    project = again("prepare")
    project.write_profile({"cluster": "nodes: 2"}, nodes=2, ranks=2, node_memory=3900)
    project.run(seconds=1000)

    for stage in STAGES:
        expected = (alone if stage == "train" else undisturbed).hashes(stage)
        assert expected
        assert project.hashes(stage) == expected, stage
    results = project.folder / "results"
    summary = pd.read_csv(results / "evaluate" / "summary.csv")
    assert {"pixels", "random", "trained"} <= set(summary.model)
    assert (results / "report" / "results.html").exists()

    jobs = project.jobs()
    assert {job["JobState"] for job in jobs} == {"COMPLETED"}
    by_rule = Counter(job["Rule"] for job in jobs)
    by_node = Counter(job["NodeList"] for job in jobs if job["Rule"] in CHUNK_STAGES)
    print(f"jobs by rule: {dict(by_rule)}; chunk jobs by node: {dict(by_node)}")
    assert {rule: by_rule[rule] for rule in CHUNK_STAGES} == dict.fromkeys(CHUNK_STAGES, 4)
    assert len(by_node) > 1, "chunks were to spread over nodes"
    gangs = {job["Rule"]: (job["NumNodes"], job["NumTasks"]) for job in jobs}
    assert gangs["cluster"] == ("2", "2")
    assert gangs["train"] == ("2", "4")
    embeds = sorted((job["StartTime"], job["EndTime"]) for job in jobs if job["Rule"] == "embed")
    side_by_side = [later for former, later in pairwise(embeds) if later[0] < former[1]]
    assert side_by_side, "chunks were to be embedded at the same time"
