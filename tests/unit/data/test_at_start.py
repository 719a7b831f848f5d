"""What is told before any work: one line for each mistake, with its file and its key."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from helpers.paths import ROOT
from mlcd.config import Config, encoders, validate
from mlcd.data import at_start
from mlcd.data.url_lists import Chunk, plan
from mlcd.utils.errors import UserError


def look(config: Config, **options: bool) -> dict[str, Chunk]:
    prepare = config.prepare
    return at_start.check(
        config,
        "mine.yaml",
        lambda: plan(config.metadata, prepare.chunk_rows, prepare.columns()),
        **options,
    )


def told(values: dict) -> list[str]:
    with pytest.raises(UserError) as caught:
        look(validate(Config, values, "mine.yaml"))
    return str(caught.value).splitlines()


@pytest.fixture(autouse=True)
def at_root(monkeypatch):
    monkeypatch.chdir(ROOT)


def test_the_default_is_sound_and_has_its_chunks():
    assert len(look(Config())) == 4


CLIP = {"train": {"model": "open_clip:ViT-B-32", "image_size": 64}}


@pytest.mark.parametrize(
    ("values", "line"),
    [
        ({"train": {"model": "resnet10tt"}}, "train.model: unknown model 'resnet10tt'; did you"),
        ({"embed": {"model": "ViT-L-15"}}, "embed.model: unknown model 'ViT-L-15'; did you mean"),
        ({"embed": {"pretrained": "openai"}}, "embed.pretrained: efficientnet_lite0 has the"),
        ({"embed": {"features": "image_text_mean"}}, "embed.features: efficientnet_lite0 has no"),
        (
            {"embed": {"model": "ViT-L-14", "pretrained": "openi"}},
            "embed.pretrained: 'openi' is neither a tag of ViT-L-14 nor a file that can be read; "
            "correct it, or fetch the file first (its tags: ",
        ),
        ({"embed": {"model": "ViT-L-14", "image_size": 8}}, "embed.image_size: 8 is less than a"),
        ({"cluster": {"initial": "none.h5"}}, "cluster.initial: 'none.h5' is no file that can"),
        ({"cluster": {"k": 2381}}, "cluster.k: 2381 is more than the 2380 rows of the lists"),
        ({"train": {"batch_size": 4096}}, "train.batch_size: 4096 is more than the 2380 rows"),
        (
            {"text": {"enabled": True, "batch_size": 4096}},
            "text.batch_size: 4096 is more than the 2380 rows",
        ),
        (
            {"text": {"enabled": True}, "prepare": {"caption_column": None}},
            "text.enabled: no image has a caption: name their column of the lists as prepare.",
        ),
        ({"ablate": {"grids": [{"k": [4096]}]}}, "ablate.grids: K = 4096 is more than the 2380"),
        ({"results": "/"}, "results: / is the root of all files"),
        ({"results": "README.md"}, f"results: {ROOT}/README.md is a file; name a folder"),
        ({"results": "README.md/below/it"}, f"results: {ROOT}/README.md is a file"),
        ({"results": "x" * 300}, "results: 'xxx"),
        (
            {"export": {"formats": ["transformers"]}, "train": {"model": "open_clip:RN50"}},
            "export.formats: transformers cannot load open_clip:RN50, which has not CLIP's blocks",
        ),
        (
            {"export": {"formats": ["open_clip"]}, "train": {**CLIP["train"], "drop_path": 0.1}},
            "train.drop_path: open_clip:ViT-B-32 has no stochastic depth; set it to 0",
        ),
        (
            {"export": {"formats": ["open_clip"]}, "train": {**CLIP["train"], "image_size": 24}},
            "train.image_size: 24 is less than the 32 pixels of a patch",
        ),
        ({"train": {"drop_path": 0.1, "model": "vgg11"}}, "train.drop_path: vgg11 has no stochast"),
        ({"train": {"initial": "c3"}}, "train.initial: 'c3' is neither a tag of resnet10t nor "),
        ({"train": {"initial": "x" * 300}}, "train.initial: 'xxx"),
        ({"train": {"initial": "demo"}}, "train.initial: demo holds none of encoder.safetensors"),
        (
            {"export": {"formats": ["open_clip"]}, "train": {**CLIP["train"], "initial": "openia"}},
            "train.initial: 'openia' is neither a tag of open_clip:ViT-B-32 nor weights on disk; "
            "correct it (its tags: ",
        ),
        (
            {"export": {"formats": ["transformers"]},
             "train": {"model": "mlcd_vit_tiny_patch8", "high_res_image_size": 100}},
            "train.high_res_image_size: 100 is no multiple of the 8 pixels",
        ),
    ],
)  # fmt: skip
def test_what_a_stage_would_find_later(values, line):
    (found,) = told(values)
    assert found.startswith(f"mine.yaml: {line}")


def test_tags_of_first_weights_are_known_by_name():
    look(Config(train={"initial": "c3_in1k"}))
    look(Config(train={"model": "tf_efficientnet_lite0", "initial": "efficientnet_lite0"}))
    assert encoders.tags("open_clip:ViT-B-32") >= {"openai", "laion2b_s34b_b79k"}
    assert encoders.tags("mlcd_vit_tiny_patch8") == set()


@pytest.mark.parametrize("model", ["vgg11", "deit_base_patch16_224", "resnet10t", "test_vit"])
def test_sources_say_who_has_stochastic_depth(model):
    assert encoders.may_have_drop_path(model) == (model != "vgg11")


def test_all_mistakes_are_told_at_once():
    found = told({
        "metadata": ["none.parquet"], "results": "/", "train": {"model": "x"},
        "evaluate": {"datasets": [{"name": "a", "path": "none.tar"}], "templates": "nope"},
    })  # fmt: skip
    assert len(found) == 5


@pytest.mark.parametrize(
    ("keys", "line"),
    [
        ({"label_field": "lable"}, "has no column 'lable'; evaluate.datasets.label_field names it"),
        ({}, "evaluate.datasets: mine: knn needs classes or tags; set label_field or tags_field"),
        ({"path": "n" * 300 + ".tar", "label_field": "label"}, "File name too long"),
        ({"label_field": "label", "group_field": "title"}, "has no column 'title'"),
    ],
)
def test_columns_of_labeled_sets(tmp_path, keys, line):
    path = tmp_path / "train.parquet"
    pq.write_table(pa.table({"image": [b""], "label": ["a"]}), path)
    (found,) = told({"evaluate": {"datasets": [{"name": "mine", "path": str(path), **keys}]}})
    assert line in found


def test_columns_of_conditions_are_looked_for_by_the_main_process_alone(tmp_path):
    """Jobs read the same config: what the main process has looked at they take as it is."""
    path = tmp_path / "list.parquet"
    rows = 2000
    urls = [f"http://a/{row}.jpg" for row in range(rows)]
    columns = {"url": urls, "caption": urls, "sha256": [""] * rows, "score": [1.0] * rows}
    pq.write_table(pa.table(columns), path)
    curate = {"enabled": True, "where": ["punsafe < 1"]}
    for values in (
        {"metadata": [str(path)], "curate": curate},
        {"curate": {**curate, "columns": [str(path)]}},
    ):
        (found,) = told(values)
        assert f"{path} has no column 'punsafe'; its columns are 'url'" in found
        assert look(validate(Config, values, "mine.yaml"), look=False)


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        ((64, 1, 2, 0), None),
        ((64, 1, 2, 8), None),
        ((64, 1, 3, 0), "64 does not divide by 1 × 3 ranks"),
        ((64, 2, 2, 3), "64 gives each of 4 ranks 16 images, which micro-batches of 3"),
        ((64, 0, 2, 0), "64 does not divide by 0 × 2 ranks"),
    ],
)
def test_batches_and_ranks(asked, line):
    problem = at_start.batch_problem(*asked)
    assert problem is None if line is None else problem.startswith(line)
