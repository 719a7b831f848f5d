"""Captions of a data set: embedded by the text tower, judged by their images and back."""

from __future__ import annotations

import csv
import json
import tarfile

import h5py
import numpy as np
import pytest
import torch

from helpers.builders import add_member, jpeg
from mlcd.cli import main
from mlcd.config import Config, validate
from mlcd.config.evaluate import Evaluate
from mlcd.config.labeled import Dataset
from mlcd.config.text import Text
from mlcd.data.labeled.layout import check, identity
from mlcd.models import text_tower as towers
from mlcd.models import trainable
from mlcd.stages.evaluate.cached import Features
from mlcd.stages.evaluate.caption_retrieval import texts_part
from mlcd.stages.evaluate.scores import score
from mlcd.utils.errors import UserError

TASK = "image_text_retrieval"

#: Split and caption of the images p0, p1, …; two test images share a caption, one has none.
IMAGES = [
    ("test", "a boat"), ("train", "a cat"), ("test", ["a dog", " ", "a house"]),
    ("test", "the sun"), ("test", None), ("test", " the sun"), ("test", "a tree"),
]  # fmt: skip


@pytest.fixture(scope="module")
def tower() -> towers.TextTower:
    torch.set_num_threads(1)
    return towers.build(Text(width=16, layers=1, heads=2, context_length=16), 16).eval()


@pytest.fixture
def place(tmp_path, tower):
    """A tar of captioned images, an encoder of random weights, and the tower as its own."""
    with tarfile.open(tmp_path / "few.tar", "w") as tar:
        for number, (split, caption) in enumerate(IMAGES):
            add_member(tar, f"p{number}.jpg", jpeg(number))
            fields = {"split": split, "title": caption, "kind": "cat" if number % 2 else "dog"}
            add_member(tar, f"p{number}.json", json.dumps(fields).encode())
    trainable.save(
        trainable.build("resnet10t", 16, 32, seed=4), tmp_path / "train", {"section": {"seed": 4}}
    )
    sha256 = trainable.read_description(tmp_path / "train")["sha256"]
    (tmp_path / "text").mkdir()
    towers.save(tower, tmp_path / "text", {"encoder_sha256": sha256})
    return tmp_path


def dataset(place, **keys) -> Dataset:
    values = {"name": "few", "path": str(place / "few.tar"), "caption_field": "title"}
    return Dataset(**values | {"tasks": [TASK]} | keys)


def features(rows: dict[bytes, torch.Tensor]) -> Features:
    """Features of test images, without class or tags."""
    n = len(rows)
    return Features(
        model="trained", dataset="few", seed=0, fingerprint="", key=list(rows),
        feature=torch.stack(list(rows.values())), split=np.array(["test"] * n),
        label=np.full(n, -1), class_name=[], tags=np.zeros((n, 0), bool), group=np.arange(n),
        group_name=list(rows), failed={},
    )  # fmt: skip


def test_captions_of_test_images_are_embedded(place, tower):
    texts_part(dataset(place), tower, place / "t.h5")
    with h5py.File(place / "t.h5") as file:
        assert file["key"][:].tolist() == [b"p0", b"p2", b"p2", b"p3", b"p5", b"p6"]
        words = ["a boat", "a dog", "a house", "the sun", "the sun", "a tree"]
        expected = towers.encode(tower, words).numpy()
        np.testing.assert_allclose(file["embedding"][:], expected, atol=1e-6)
        assert (file.attrs["dataset"], file.attrs["shared"]) == ("few", 2)


def test_images_that_lie_at_their_captions_are_found(place, tower):
    texts_part(dataset(place), tower, place / "t.h5")
    words = towers.encode(tower, ["a boat", "a dog", "a house", "the sun", "a tree"])
    # p2 lies at the second of its captions, p4 has none, p6 lies at another's.
    at = {b"p0": 0, b"p2": 2, b"p3": 3, b"p4": 4, b"p5": 3, b"p6": 0}
    data = features({key: 2 * words[row] for key, row in at.items()})
    section = Evaluate(datasets=[dataset(place)])
    found = score(section, section.datasets[0], data, None, str(place / "t.h5"))
    # p0 and p2 find a caption of theirs, p3 and p5 one that is just as much the other's.
    assert found["scores"]["image_to_text_r1"] == 2 / 5
    assert found["scores"]["image_to_text_r10"] == found["scores"]["text_to_image_r10"] == 1
    # The boat has two images just as near, and so has the sun. The house finds its own, and the
    # dog may, as the weights fall.
    dog = int((words[1] @ torch.stack([data.feature[i] for i in (0, 1, 2, 5)]).T).argmax() == 1)
    assert found["scores"]["text_to_image_r1"] == round((1 + dog) / 6, 4)
    # Five of six captions: all but one, which is the only one of four images.
    assert found["chance"]["image_to_text_r5"] == pytest.approx((4 * 5 / 6 + 1) / 5, abs=1e-4)
    assert found["chance"]["text_to_image_r1"] == pytest.approx(1 / 5)
    assert found["chance"]["text_to_image_r5"] == found["chance"]["text_to_image_r10"] == 1
    assert found[TASK]["images"] == 5
    assert found[TASK]["images_without_a_caption"] == 1
    assert (found[TASK]["captions"], found[TASK]["captions_of_several_images"]) == (6, 2)


def test_captions_of_other_images_or_of_another_tower_are_refused(place, tower):
    texts_part(dataset(place), tower, place / "t.h5")
    words = towers.encode(tower, ["a boat", "a tree"])
    data = features({b"p0": words[0], b"p6": words[1]})
    section = Evaluate(datasets=[dataset(place)])
    about = (section, section.datasets[0])
    data.images = "another version"
    with pytest.raises(UserError, match="captions of other files of few than its features"):
        score(*about, data, None, str(place / "t.h5"))
    data.images = identity(dataset(place))
    score(*about, data, None, str(place / "t.h5"))
    with pytest.raises(UserError, match="captions through another text tower"):
        score(*about, data, towers.load(place / "text"), str(place / "t.h5"))


def test_features_of_another_encoder_than_the_towers_are_refused(place, capsys):
    section = Evaluate(datasets=[dataset(place, tasks=["knn"], label_field="kind")]).to_json()
    words = ["--model", "trained", "--dataset", "few", "--threads", "1", "--config", section]
    words += ["--encoder", str(place / "train"), "--output", str(place / "f.h5")]
    assert main(["evaluate", "--part", "features", *words]) == 0
    about = json.loads((place / "text" / "text.json").read_text())
    trainable.save(trainable.build("resnet10t", 16, 32, seed=5), place / "other", {"section": {}})
    sha256 = trainable.read_description(place / "other")["sha256"]
    assert about["encoder_sha256"] != sha256
    towers.save(towers.load(place / "text"), place / "text", {"encoder_sha256": sha256})
    words = ["--features", str(place / "f.h5"), "--config", section, "--text", str(place / "text")]
    assert main(["evaluate", "--part", "metrics", *words, "--output", str(place / "m.json")]) == 2
    assert "features of another encoder than --text" in capsys.readouterr().err


def test_captions_of_images_that_failed_are_left_out(place, tower):
    texts_part(dataset(place), tower, place / "t.h5")
    words = towers.encode(tower, ["a boat", "a tree"])
    section = Evaluate(datasets=[dataset(place)])
    data = features({b"p0": words[0], b"p6": words[1]})
    found = score(section, section.datasets[0], data, None, str(place / "t.h5"))
    assert (found[TASK]["images"], found[TASK]["captions"]) == (2, 2)
    assert found["scores"]["text_to_image_r1"] == 1


def test_without_test_images_validation_is_test_and_none_is_refused(place, tower):
    rows = [("val", "a boat"), ("train", "a cat"), ("val", None)]
    with tarfile.open(place / "few.tar", "w") as tar:
        for number, (split, caption) in enumerate(rows):
            add_member(tar, f"p{number}.jpg", jpeg(number))
            fields = {"split": split, "title": caption, "number": number}
            add_member(tar, f"p{number}.json", json.dumps(fields).encode())
    texts_part(dataset(place), tower, place / "t.h5")
    with h5py.File(place / "t.h5") as file:
        assert file["key"][:].tolist() == [b"p0"]
    with pytest.raises(UserError, match="no test image of few has a caption in field 'words'"):
        texts_part(dataset(place, caption_field="words"), tower, place / "t.h5")
    with pytest.raises(UserError, match="image p0: field 'number' is 0; expected a text or a"):
        texts_part(dataset(place, caption_field="number"), tower, place / "t.h5")


def test_all_parts_put_texts_of_the_trained_encoder_beside_the_other_models(place):
    item = dataset(place, tasks=[TASK, "zero_shot", "retrieval"], label_field="kind")
    section = {"datasets": [item.model_dump()], "models": ["pixels", "trained"], "knn_k": [1]}
    section |= {"templates": "name", "retrieval_k": [1]}

    def evaluate(*arguments) -> int:
        command = ["evaluate", "--threads", "1", "--config", json.dumps(section)]
        return main([*command, *map(str, arguments)])

    out, tower = place / "all", ("--encoder", place / "train", "--text", place / "text")
    assert evaluate(*tower, "--output", out) == 0
    with (out / "summary.csv").open() as handle:
        table = [(row["metric"], row["model"]) for row in csv.DictReader(handle)]
    ways = [f"{way}_r{k}" for way in ("image_to_text", "text_to_image") for k in (1, 5, 10)]
    expected = [("retrieval_r1", model) for model in ("chance", "pixels", "trained")]
    assert table[:3] == expected
    expected += [(m, model) for m in ("zero_shot", *ways) for model in ("chance", "trained")]
    assert sorted(table) == sorted(expected)
    text = (out / "summary.md").read_text()
    assert "text to image R@5" in text
    assert "6 captions of 5 test images, 2 of them of several images" in text
    assert (out / "summary.svg").read_text().count("<!-- text to image -->") == 3

    texts = place / "t.h5"
    assert evaluate("--part", "texts", "--dataset", "few", *tower, "--output", texts) == 0
    assert texts.read_bytes() == (out / "texts" / "few.h5").read_bytes()
    inputs = ("--features", out / "features" / "trained-few.h5", "--texts", texts, *tower)
    assert evaluate("--part", "metrics", *inputs, "--output", place / "trained.json") == 0
    assert (place / "trained.json").read_bytes() == (out / "trained.json").read_bytes()


@pytest.mark.parametrize(
    ("keys", "sections", "message"),
    [
        ({}, {}, f"{TASK} on few needs the text tower; set text.enabled"),
        ({"caption_field": None}, {"text": {"enabled": True}}, f"{TASK} on few needs captions; "),
        (
            {}, {"text": {"enabled": True}, "models": ["random"]},
            f"evaluate.models: {TASK} on few is of the trained encoder; add trained",
        ),
    ],
)  # fmt: skip
def test_the_task_is_refused_where_it_cannot_be_done(keys, sections, message):
    item = {"name": "few", "path": "few.tar", "caption_field": "title", "tasks": [TASK]} | keys
    models = sections.pop("models", ["trained"])
    values = {"evaluate": {"datasets": [item], "models": models}, **sections}
    with pytest.raises(UserError, match=message):
        validate(Config, values, "config.yaml")


def test_folders_of_classes_have_no_place_for_captions(tmp_path):
    (tmp_path / "test" / "cat").mkdir(parents=True)
    item = dataset(tmp_path, path=str(tmp_path))
    with pytest.raises(UserError, match=r"few: .*: no place for captions, which image_text"):
        check(item)
    check(item.model_copy(update={"tasks": ["knn"]}))


def test_captions_of_a_parquet(tmp_path, tower):
    import pandas as pd

    rows = [{"image": jpeg(0), "split": "test", "words": ["a boat", "a ship"]}]
    pd.DataFrame(rows).to_parquet(tmp_path / "few.parquet")
    item = dataset(tmp_path, path=str(tmp_path / "few.parquet"), caption_field="words")
    texts_part(item, tower, tmp_path / "t.h5")
    with h5py.File(tmp_path / "t.h5") as file:
        assert file["key"][:].tolist() == [b"few/00000000"] * 2
    section = Evaluate(datasets=[item, dataset(tmp_path, name="other")])
    again = Evaluate.model_validate(json.loads(section.for_texts("few"))).datasets
    assert [(d.name, d.caption_field, d.path) for d in again] == [("few", "words", item.path)]
    # Captions decide no image's features.
    plain = section.model_copy(
        update={
            "datasets": [d.model_copy(update={"caption_field": None}) for d in section.datasets]
        }
    )
    assert section.for_features() == plain.for_features()
