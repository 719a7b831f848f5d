"""A job of a chunk is disturbed; Snakemake or Slurm tries again and the bytes are the same."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pandas as pd
from project import Project, wait_for

CHUNK = "first-00000"


def states(project, rule: str) -> list[str]:
    return [job["JobState"] for job in project.jobs(rule)]


def assert_equal_chunk(stage: str, project: Project, undisturbed: Project) -> None:
    """The chunk's files are those of the undisturbed run."""
    got, expected = (
        {name: value for name, value in some.hashes(stage).items() if CHUNK in name}
        for some in (project, undisturbed)
    )
    assert expected and got == expected


def test_a_job_that_fails_is_tried_again(undisturbed, again, site):
    """The web server is out of order for the whole first attempt: the job exits 1."""
    project = again("download")
    site.broken = True
    snakemake = project.start(f"results/images/{CHUNK}/manifest.json")
    wait_for(lambda: "FAILED" in states(project, "download"), "a failed download")
    site.broken = False
    snakemake.finish()
    assert states(project, "download") == ["FAILED", "COMPLETED"]
    # All is equal but that each row counts the pass in which it arrived.
    images = f"results/images/{CHUNK}"
    for name in ("00000.tar", "00001.tar"):
        expected = (undisturbed.folder / images / name).read_bytes()
        assert (project.folder / images / name).read_bytes() == expected
    got, expected = (
        pd.read_parquet(some.folder / images / "rows.parquet") for some in (project, undisturbed)
    )
    assert (set(got.passes), set(expected.passes)) == ({2}, {1})
    pd.testing.assert_frame_equal(got.drop(columns="passes"), expected.drop(columns="passes"))


def test_a_canceled_job_is_tried_again(undisturbed, again, site):
    project = again("download")
    site.delay = 2.0
    snakemake = project.start(f"results/images/{CHUNK}/manifest.json")
    job = project.running("download")
    wait_for(lambda: site.asked, "the first transfer")
    subprocess.run(["scancel", job["JobId"]], check=True)
    site.delay = 0.0
    snakemake.finish()
    assert states(project, "download") == ["CANCELLED", "COMPLETED"]
    assert_equal_chunk("download", project, undisturbed)


def test_a_job_out_of_memory_is_tried_again_with_more(undisturbed, again):
    project = again("embed")
    # The rule's own memory grows by the attempt, too, from more than these nodes have.
    project.write_profile({"embed": "mem_mb: 300 * attempt * attempt"})
    project.run(f"results/embeddings/{CHUNK}.h5")
    first, *later = project.jobs("embed")
    # Without cgroups Slurm calls it FAILED, and says why in the job's log.
    assert first["JobState"] in ("OUT_OF_MEMORY", "FAILED")
    assert "exceeded memory limit" in Path(first["StdOut"]).read_text()
    assert later[-1]["JobState"] == "COMPLETED"
    assert [job["MinMemoryNode"] for job in [first, *later]][:2] == ["300M", "1200M"]
    assert_equal_chunk("embed", project, undisturbed)


def test_a_node_goes_down_in_embed(undisturbed, again, cluster):
    project = again("embed")
    snakemake = project.start(f"results/embeddings/{CHUNK}.h5")
    job = project.running("embed")
    cluster.set_node(job["NodeList"], "down")
    snakemake.finish()
    (mine,) = project.jobs("embed")
    assert mine["JobState"] == "COMPLETED"
    assert mine["Restarts"] == "1"
    assert_equal_chunk("embed", project, undisturbed)
