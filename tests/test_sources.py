"""What makes a stage's code stale, and what does not."""

import pytest

from mlcd import sources
from mlcd.config import SECTIONS


@pytest.mark.parametrize("stage", SECTIONS)
def test_every_stage_has_its_own_code_and_no_other_stage(stage):
    modules = sources.modules_of(stage)
    assert stage in modules
    others = set(SECTIONS) - {stage}
    assert not others & {module.split(".")[0] for module in modules}


def test_training_depends_on_the_loss_and_embedding_does_not():
    assert {"classifier", "encoders.trainable", "images", "stores.labels"} <= set(
        sources.modules_of("train")
    )
    assert not {"classifier", "losses"} & set(sources.modules_of("embed"))


def test_the_cost_model_is_no_part_of_the_clustering():
    modules = sources.modules_of("cluster")
    assert {"cluster.kmeans", "cluster.initial", "neighbours.memory"} <= set(modules)
    assert not {"cluster.cost", "cluster.plan"} & set(modules)


def test_comments_and_blank_lines_do_not_count(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_ROOT", tmp_path)
    hashes = []
    for text in ["x = 1\n", "# why\n\nx = 1\n", "x = 2\n"]:
        (tmp_path / "label.py").write_text(text)
        sources.code_hash.cache_clear()
        hashes.append(sources.code_hash("label"))
    sources.code_hash.cache_clear()
    assert hashes[0] == hashes[1] != hashes[2]


def test_identity_follows_content_not_time(tmp_path):
    path = tmp_path / "list.parquet"
    path.write_bytes(b"a" * 3_000_000)
    first = sources.file_identity(str(path))
    path.touch()
    assert sources.file_identity(str(path)) == first
    path.write_bytes(b"a" * 2_999_999 + b"b")
    assert sources.file_identity(str(path)) != first
