"""The text tower's gang on two nodes gives the tower that one machine gives."""

from __future__ import annotations

from project import SMALL

from mlcd.utils.files import sha256_file

TOWER = "results/text/text.safetensors"
SECTION = {
    "enabled": True,
    "epochs": 2,
    "batch_size": 8,
    "width": 16,
    "layers": 1,
    "context_length": 8,
    "shuffle_block": 4,
    "shuffle_window": 32,
}


def test_a_text_tower_on_two_nodes_equals_one_machines(undisturbed, again, tmp_path):
    alone = undisturbed.copy(tmp_path / "alone", again_from=None)
    alone.configure(**SMALL, text=SECTION)
    # As many threads as on the cluster: on a CPU they move the last bit of some features.
    done = alone.snakemake(TOWER, "--set-threads", "text_embed=1", "text=2")
    assert done.returncode == 0, done.stdout[-6000:]

    project = again(None)
    project.configure(**SMALL, text=SECTION)
    project.run(TOWER)
    assert sha256_file(project.folder / TOWER) == sha256_file(alone.folder / TOWER)
    (job,) = project.jobs("text")
    assert (job["JobState"], job["NumNodes"], job["NumTasks"]) == ("COMPLETED", "2", "2")
    assert len(project.jobs("text_embed")) == 4
    assert not project.jobs("train")
