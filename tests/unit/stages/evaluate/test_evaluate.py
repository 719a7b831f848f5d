"""The stage evaluate as a program: features, metrics, summary, and what it refuses."""

from __future__ import annotations

import io
import json
import shutil

import h5py
import numpy as np
import pytest
import torch
from PIL import Image

from helpers.builders import jpeg
from helpers.evaluate_runs import config, evaluate, pack, random_image, rows
from mlcd.config import Evaluate
from mlcd.models import trainable
from mlcd.stages.evaluate import cached
from mlcd.utils.records import read_csv, write_record


@pytest.fixture
def place(tmp_path):
    torch.set_num_threads(1)
    pack(tmp_path / "few.tar", rows())
    trainable.save(
        trainable.build("resnet10t", 16, 32, seed=4), tmp_path / "train", {"section": {"seed": 4}}
    )
    return tmp_path


def test_all_parts_in_one_go(place, capsys):
    out = place / "evaluate"
    command = ("--encoder", place / "train", "--output", out, "--config", config(place))
    assert evaluate(*command) == 0
    table = read_csv(out / "summary.csv", "evaluate")
    assert list(table[0]) == [
        *("model", "dataset", "metric", "value", "seed", "better", "published", "difference"),
        "encoder_sha256",
    ]
    sha256 = trainable.read_description(place / "train")["sha256"]
    for row in table:
        assert row["encoder_sha256"] == (sha256 if row["model"] == "trained" else "")
    assert json.loads((out / "trained.json").read_text())["encoder_sha256"] == sha256
    assert len(table) == 4 * 6
    scores = {(row["model"], row["metric"]): float(row["value"]) for row in table}
    assert scores["pixels", "knn_1"] == 1.0  # stripes are plain to see
    assert scores["pixels", "linear_probe"] == 1.0
    assert scores["pixels", "tags_map"] == 1.0
    assert scores["pixels", "retrieval_r1"] == 1.0
    assert scores["chance", "knn_1"] == scores["chance", "tags_map"] == 0.5
    assert {(row["better"], row["published"], row["difference"]) for row in table} == {
        ("higher", "", "")
    }
    assert {row["seed"] for row in table if row["model"] == "trained"} == {"4"}
    found = json.loads((out / "pixels.json").read_text())["datasets"]["few"]
    assert found["images"] == {"train": 40, "validation": 0, "test": 20, "failed": {}}
    assert found["tags"] == {"kept": 2, "too_rare": 1}
    text = (out / "summary.md").read_text()
    assert "| trained encoder |" in text
    assert "| k-NN accuracy, k = 5 " in text
    assert "<!-- k = 5 -->" in (out / "summary.svg").read_text()

    names = ["summary.csv", "summary.md", "summary.svg", "trained.json", "random.json"]
    before = {name: (out / name).read_bytes() for name in names}
    times = {path.name: path.stat().st_mtime_ns for path in (out / "features").glob("*.h5")}
    assert evaluate(*command) == 0
    assert {name: (out / name).read_bytes() for name in names} == before
    again = {path.name: path.stat().st_mtime_ns for path in (out / "features").glob("*.h5")}
    assert again == times  # cached features were used again

    shutil.copy(out / "features" / "trained-few.h5", place / "old.h5")
    trainable.save(
        trainable.build("resnet10t", 16, 32, seed=9), place / "train", {"section": {"seed": 9}}
    )
    assert evaluate(*command) == 0
    both = ("--features", out / "features" / "trained-few.h5", place / "old.h5")
    mixed = ("--part", "metrics", *both, "--output", place / "mixed.json")
    assert evaluate(*mixed, "--config", config(place)) == 2
    assert "old.h5: features of another encoder than" in capsys.readouterr().err
    changed = {path.name: path.stat().st_mtime_ns for path in (out / "features").glob("*.h5")}
    stale = {name for name in times if changed[name] != times[name]}
    assert stale == {"trained-few.h5"}  # random keeps: its weights come from evaluate.seed


def test_parts_one_by_one_give_the_same_as_all(place):
    whole, parts = place / "whole", place / "parts"
    evaluate("--encoder", place / "train", "--output", whole, "--config", config(place))
    for model in ("pixels", "random", "trained"):
        features = parts / f"{model}.h5"
        section = Evaluate.model_validate(json.loads(config(place))).for_features()
        assert (
            evaluate(
                *("--part", "features", "--model", model, "--dataset", "few"),
                *("--encoder", place / "train", "--output", features, "--config", section),
                *("--batch-size", 7, "--workers", 3),
            )
            == 0
        )
        out = parts / f"{model}.json"
        assert (
            evaluate(
                *("--part", "metrics", "--features", features, "--output", out),
                *("--config", config(place)),
            )
            == 0
        )
    metrics = [parts / f"{model}.json" for model in ("pixels", "random", "trained")]
    summary = parts / "summary.csv"
    assert evaluate("--part", "summary", "--metrics", *metrics, "--output", summary) == 0
    assert summary.read_bytes() == (whole / "summary.csv").read_bytes()


def test_features_file_holds_what_the_formats_say(place):
    out = place / "f.h5"
    command = ("--part", "features", "--dataset", "few", "--config", config(place, pixel_side=4))
    assert evaluate(*command, "--model", "pixels", "--output", out) == 0
    with h5py.File(out) as file:
        assert file["feature"].shape == (60, 48)
        assert file["feature"].dtype == np.float32
        assert np.allclose(file["feature"][:].mean(1), 0, atol=1e-6)
        assert file["key"][3] == b"k003"
        assert file["split"][:4].tolist() == [2, 0, 0, 2]
        assert file["group_name"][file["group"][5]] == b"title 1"
        assert [file["class_name"][i] for i in file["label"][:2]] == [b"kind 0", b"kind 1"]
        assert file["tag_name"][:].tolist() == [b"cold", b"rare", b"warm"]
        assert file["tag"][:2].tolist() == [[0, 2], [1, 0]]
    trained = ("--model", "trained", "--encoder", place / "train", "--output", out)
    assert evaluate(*command, *trained) == 0
    with h5py.File(out) as file:
        found = file["feature"][:]
    # One image by hand: shorter side to 32 pixels, center crop, normalized, through the encoder.
    encoder = trainable.load(place / "train")
    image = Image.open(io.BytesIO(random_image(0, 0))).resize((38, 32), Image.Resampling.BICUBIC)
    pixels = torch.from_numpy(np.array(image.crop((3, 0, 35, 32)))).permute(2, 0, 1) / 255
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (encoder.mean, encoder.std))
    with torch.no_grad():
        expected = encoder(((pixels - mean) / std)[None])[0]
    assert np.allclose(found[0], expected, atol=1e-5)


def test_bad_images_are_counted_and_too_many_refused(place, capsys):
    damaged = rows()
    damaged[5] = (damaged[5][0], damaged[5][1][:200], damaged[5][2])
    damaged[6] = (damaged[6][0], b"<html>", damaged[6][2])
    pack(place / "few.tar", damaged)
    out = place / "f.h5"
    command = ("--part", "features", "--model", "pixels", "--dataset", "few", "--output", out)
    assert evaluate(*command, "--config", config(place)) == 2
    assert "2 of 60 images failed (damaged 1, not_an_image 1)" in capsys.readouterr().err
    assert not out.exists()
    assert evaluate(*command, "--config", config(place, max_failed=0.1)) == 0
    with h5py.File(out) as file:
        assert file["failed_key"][:].tolist() == [b"k005", b"k006"]
        assert len(file["feature"]) == len(file["key"]) == 58
    metrics = ("--part", "metrics", "--features", out, "--output", place / "m.json")
    assert evaluate(*metrics, "--config", config(place)) == 0
    found = json.loads((place / "m.json").read_text())["datasets"]["few"]
    assert found["images"]["failed"] == {"damaged": 1, "not_an_image": 1}


def test_rare_and_unseen_classes_are_counted(place):
    few = rows()
    few[1][2]["kind"] = "alone in train"
    few[0][2]["kind"] = "only in test"
    del few[9][2]["kind"]
    pack(place / "few.tar", few)
    out = place / "evaluate"
    assert evaluate("--output", out, "--config", config(place, models=["pixels"])) == 0
    found = json.loads((out / "pixels.json").read_text())["datasets"]["few"]
    assert found["classes"] == {
        "all": 4,
        "in_train": 3,
        "with_one_train_image": 1,
        "unlabeled_images": 1,
        "test_images_of_unseen_classes": 1,
    }
    # Titles are groups of two or three test images, of either kind: 18 have an answer.
    assert found["retrieval"] == {
        "queries": 18,
        "queries_without_an_answer": 1,
        "gallery": 19,
    }
    assert found["scores"]["knn_5"] == round(18 / 19, 4)  # the unseen one counts as wrong
    assert "1 test images of other classes count as wrong" in (out / "summary.md").read_text()


@pytest.mark.parametrize(
    ("arguments", "keys", "message"),
    [
        (["--part", "features", "--model", "pixels", "--dataset", "none"], {},
         "evaluate.datasets: none is called 'none'; known: few"),
        (["--part", "features", "--model", "pixel", "--dataset", "few"], {}, "--model: 'pixel'"),
        (["--part", "features", "--model", "trained", "--dataset", "few"], {}, "--encoder: needed"),
        (["--part", "features", "--model", "pixels"], {}, "--dataset: needed for --part features"),
        (["--part", "metrics"], {}, "--features: needed"),
        (["--batch-size", "0"], {}, "--batch-size: 0 is too low"),
        ([], {"models": ["pixels"], "knn_k": [50, 60]}, "evaluate.knn_k: 50 neighbors of 40"),
        ([], {"models": ["pixels"], "dataset": {"split_field": "side"}}, "field 'side' is None"),
        ([], {"models": ["pixels"], "dataset": {"tags_field": "title"}}, "a list of words"),
        ([], {"models": ["pixels"], "dataset": {"label_field": "tags"}}, "expected a word"),
        ([], {"models": ["pixels"], "dataset": {"label_field": "split"}}, "needs two classes"),
        ([], {"models": ["pixels"], "dataset": {"min_tag_count": 99}}, "has no tag on 99 images"),
        ([], {"models": ["pixels"], "dataset": {"path": "none.tar"}}, "few: none.tar: no such"),
        ([], {"models": ["pixels"], "dataset": {"path": "a.zip"}}, "few: a.zip: expected a webd"),
        ([], {"models": ["pixels"], "dataset": {"metric": "roc_auc", "label_field": "title"}},
         "roc_auc is of two"),
        ([], {"models": ["pixels"], "dataset": {"metric": "map", "tags_field": None}},
         "metric map is of tags; set tags_field"),
        ([], {"models": ["pixels"], "dataset": {"label_field": None, "tags_field": None}},
         "has neither classes nor tags"),
        ([], {"probe_c_min": 10, "probe_c_max": 1}, "probe_c_min: 10 is not below probe_c_max, 1"),
        ([], {"published": "laion"}, "no published run is called 'laion'; known: laion400m-vit-"),
        (["--part", "image_text"], {}, "--images: needed for --part image_text"),
        ([], {"models": ["pixels"], "dataset": {"group_field": "titel"}},
         "no image has a field 'titel', which evaluate.datasets.group_field of few names"),
        ([], {"models": ["pixels"], "dataset": {"label_field": "lable"}}, "has a field 'lable'"),
        ([], {"templates": "generl"}, "evaluate.templates: no set is called 'generl'"),
        ([], {"models": ["trained"], "dataset": {"tasks": ["zero_shot"], "tags_field": None}},
         "--text: needed for zero_shot"),
        ([], {"models": ["pixels", "pixels"]}, "a value stands twice"),
        ([], {}, "--encoder: needed for random and trained"),
    ],
)  # fmt: skip
def test_mistakes_are_refused_in_one_line(place, capsys, monkeypatch, arguments, keys, message):
    monkeypatch.chdir(place)
    (place / "a.zip").write_bytes(b"PK")
    command = ["--output", str(place / "out"), "--config", config(place, **keys)]
    assert evaluate(*arguments, *command) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if message in line]
    assert errors


def test_summary_refuses_files_that_do_not_belong_together(place, capsys):
    out = place / "evaluate"
    assert evaluate("--output", out, "--config", config(place, models=["pixels"])) == 0
    found = json.loads((out / "pixels.json").read_text())
    del found["datasets"]["few"]["scores"]["knn_5"]
    write_record(out / "other.json", {"seed": 0, "datasets": found["datasets"], "model": "other"})
    both = (out / "pixels.json", out / "other.json")
    assert evaluate("--part", "summary", "--metrics", *both, "--output", out / "s.csv") == 2
    assert "other: no knn_5 on few" in capsys.readouterr().err
    write_record(out / "other.json", {})
    assert evaluate("--part", "summary", "--metrics", *both, "--output", out / "s.csv") == 2
    assert "not the metrics of a model" in capsys.readouterr().err


def test_features_of_a_frozen_model_are_unit_rows(place):
    out = place / "f.h5"
    pack(place / "few.tar", rows(6))
    embed = json.dumps({"image_size": 32})
    assert (
        evaluate(
            *("--part", "features", "--model", "frozen", "--dataset", "few", "--output", out),
            *("--embed-config", embed, "--config", config(place)),
        )
        == 0
    )
    with h5py.File(out) as file:
        assert np.allclose(np.linalg.norm(file["feature"][:], axis=1), 1, atol=1e-5)


def test_a_probe_key_does_not_touch_the_features():
    section, probe = Evaluate(), Evaluate(probe_max_iterations=5, knn_k=[3])
    assert section.for_features() == probe.for_features()
    assert section.for_features() != Evaluate(seed=1).for_features()
    Evaluate.model_validate(json.loads(section.for_features()))  # a config that is accepted


def test_images_are_not_mixed_up_by_decoding_threads(place):
    assert jpeg(1) != jpeg(2)
    features = []
    for workers, batch in ((1, 64), (4, 3)):
        out = place / f"{workers}.h5"
        command = ("--part", "features", "--model", "pixels", "--dataset", "few", "--output", out)
        wide = ("--workers", workers, "--batch-size", batch)
        assert evaluate(*command, *wide, "--config", config(place)) == 0
        features.append(out.read_bytes())
    assert features[0] == features[1]


def test_a_validation_part_of_one_class_is_refused(place, capsys):
    few = rows()
    for number in (1, 7):
        few[number][2]["split"] = "validation"
    pack(place / "few.tar", few)
    keys = {"metric": "roc_auc", "tags_field": None, "tasks": ["linear_probe"]}
    command = (
        "--output",
        place / "out",
        "--config",
        config(place, models=["pixels"], dataset=keys),
    )
    assert evaluate(*command) == 2
    assert "few: its validation images are all of one class" in capsys.readouterr().err


def test_two_tars_that_number_alike_are_two_sets_of_keys(place, capsys):
    (place / "few").mkdir()
    for part in (0, 1):
        half = rows()[30 * part : 30 * part + 30]
        numbered = [(f"{number:03d}", *row[1:]) for number, row in enumerate(half)]
        pack(place / "few" / f"{part}.tar", numbered)
    out = place / "f.h5"
    keys = {"path": str(place / "few")}
    command = ("--part", "features", "--model", "pixels", "--dataset", "few", "--output", out)
    assert evaluate(*command, "--config", config(place, dataset=keys)) == 0
    with h5py.File(out) as file:
        assert len(set(file["key"][:].tolist())) == 60
        assert file["key"][30] == b"1/000"
    pack(place / "few.tar", [*rows(), rows()[0]])
    assert evaluate(*command, "--config", config(place)) == 2
    assert "two images are called k000, " in capsys.readouterr().err


def test_a_class_folder_of_another_encoding_is_kept(tmp_path):
    for side, kind in (("train", "caf\udce9"), ("train", "bar"), ("test", "caf\udce9")):
        folder = tmp_path / "set" / side / kind
        folder.mkdir(parents=True)
        (folder / "1.jpg").write_bytes(jpeg(len(kind)))
    out, keys = tmp_path / "f.h5", {"path": str(tmp_path / "set"), "label_field": None}
    keys |= {"tags_field": None, "group_field": None}
    command = ("--part", "features", "--model", "pixels", "--dataset", "few", "--output", out)
    assert evaluate(*command, "--config", config(tmp_path, dataset=keys)) == 0
    data = cached.read(out, torch.device("cpu"))
    assert data.class_name == ["bar", "caf\udce9"]
    assert b"train/caf\xe9/1.jpg" in data.key


def test_figures_without_a_value_are_refused(place, capsys):
    command = ("--part", "summary", "--metrics", "none.json", "--output", place / "s.csv")
    assert evaluate(*command, "--figures", "[{}]") == 2
    assert "--figures: {} has no dataset" in capsys.readouterr().err


def test_scores_of_nothing_are_refused(place, capsys):
    write_record(place / "m.json", {"model": "trained", "seed": 0, "datasets": {}})
    assert (
        evaluate("--part", "summary", "--metrics", place / "m.json", "--output", place / "s.csv")
        == 2
    )
    assert "m.json: holds no scores; run --part metrics, with --text" in capsys.readouterr().err
