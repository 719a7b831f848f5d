"""The dense tasks end to end on composed scenes, and their places in tables."""

from __future__ import annotations

import json

import pytest

from helpers.evaluate_runs import evaluate
from helpers.scene_sets import write_scenes
from mlcd.models import region_layer, trainable
from mlcd.stages.evaluate.dense import store
from mlcd.utils.records import read_csv

TASKS = ["segmentation", "regions", "pointing", "token_spread"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("dense")
    write_scenes(place / "shapes")
    trainable.save(
        trainable.build("mlcd_vit_tiny_patch8", 192, 48, seed=4),
        place / "train",
        {"section": {"seed": 4}},
    )
    return place


def config(place, **keys) -> str:
    dataset = {"name": "shapes", "path": str(place / "shapes"), "tasks": TASKS}
    values = {
        "datasets": [dataset | keys.pop("dataset", {})],
        "models": ["random", "trained"],
        "segmentation_steps": 150,
        "segmentation_batch_size": 4,
        "segmentation_lr": 0.02,
        "region_k": 3,
        "region_min_visible": 0.3,
        "knn_k": [3],
    }
    return json.dumps(values | keys)


def dense(place, output, **keys) -> int:
    return evaluate(
        *("--part", "dense", "--model", "trained", "--dataset", "shapes", "--device", "cpu"),
        *("--encoder", place / "train", "--output", output, "--config", config(place, **keys)),
    )


@pytest.fixture(scope="module")
def result(place):
    assert dense(place, place / "whole.json") == 0
    return json.loads((place / "whole.json").read_text())


def test_colors_are_told_by_patches_and_boxes(place, result):
    """Random patches keep colors: the tasks find them, and well above chance."""
    scores, chance = result["scores"], result["chance"]
    assert set(scores) == {
        "segmentation_miou", "token_cosine", "pointing_class", "pointing_object",
        *(f"region_{how}_{view}" for how in ("knn", "probe") for view in ("crop", "roi", "image")),
    }  # fmt: skip
    assert scores["segmentation_miou"] > chance["segmentation_miou"] + 0.3
    assert scores["region_probe_crop"] > 0.8
    assert 0 < chance["region_probe_crop"] < 0.6
    assert scores["region_probe_roi"] > chance["region_probe_roi"] + 0.3
    assert scores["pointing_class"] > chance["pointing_class"]
    assert -1 <= scores["token_cosine"] <= 1
    assert "token_cosine" not in chance
    about = result["dense"]
    assert about["map"] == [6, 6, 192]
    assert about["segmentation"]["train_images"] == 27
    groups = about["regions"]["test_by_group"]
    assert groups["small"] + groups["medium"] + groups["large"] == about["regions"]["test"]
    assert groups["free"] + groups["covered"] == about["regions"]["test"]


def test_a_killed_run_keeps_its_parts_and_gives_the_same(place, result, monkeypatch):
    output, encoded = place / "killed.json", store._encoded
    monkeypatch.setattr(store, "PART", 10)
    seen = []

    def killed(*arguments):
        seen.append(len(seen))
        if len(seen) == 3:
            raise KeyboardInterrupt
        return encoded(*arguments)

    monkeypatch.setattr(store, "_encoded", killed)
    assert dense(place, output) == 130
    assert dense(place, output) == 0
    assert len(seen) == 3 + 2  # of four parts, two were there
    assert json.loads(output.read_text()) == result
    assert dense(place, output) == 0
    assert len(seen) == 5
    assert not list((place / "state").glob("killed-*"))


def test_a_region_layer_is_one_more_view_of_the_encoder_that_has_it(place, tmp_path):
    layer = region_layer.RegionLayer(192, 192, seed=4)
    extra = {"section": {"seed": 4}, "regions": region_layer.save(layer, place / "layered")}
    encoder = trainable.build("mlcd_vit_tiny_patch8", 192, 48, seed=4)
    trainable.save(encoder, place / "layered", extra)
    out = tmp_path / "all"
    keys = {"dataset": {"tasks": ["regions", "knn"]}}
    command = ("--encoder", place / "layered", "--output", out, "--config", config(place, **keys))
    assert evaluate(*command) == 0
    table = read_csv(out / "summary.csv", "evaluate")
    rows = {(row["model"], row["metric"]): float(row["value"]) for row in table}
    for how in ("knn", "probe"):
        assert ("random", f"region_{how}_layer") not in rows
        assert ("random", f"region_{how}_roi") in rows
        # Random weights keep colors here too.
        chance = rows["chance", f"region_{how}_layer"]
        assert rows["trained", f"region_{how}_layer"] > chance + 0.2
    text = (out / "summary.md").read_text()
    assert "| region probe on the trained region layer " in text
    assert "| trained, knn of layer |" in text


def test_layered_is_the_layer_on_each_objects_own_map(place, monkeypatch):
    """In batches that hold several objects of an image, and parts of one."""
    from types import SimpleNamespace

    import numpy as np
    import torch

    from mlcd.stages.evaluate.dense import regions

    rng = np.random.default_rng(0)
    maps = torch.from_numpy(rng.standard_normal((4, 64, 3, 5)).astype(np.float32))
    corner = rng.uniform(0, 0.6, (9, 2))
    box = np.concatenate([corner, corner + rng.uniform(0.05, 0.4, (9, 2))], axis=1)
    row = np.array([2, 0, 0, 3, 3, 3, 1, 2, 0])
    kept = SimpleNamespace(row=row, box=box, tokens=lambda rows: maps[torch.from_numpy(rows)])
    layer = region_layer.RegionLayer(64, 8).eval()
    monkeypatch.setattr(regions, "_BATCH", 4)
    found = regions.layered(kept, layer)
    with torch.no_grad():
        for one in range(9):
            boxes = torch.from_numpy(box[one : one + 1]).float()
            alone = layer.features(maps[row[one]][None], boxes, torch.tensor([0]))
            np.testing.assert_allclose(found[one], alone[0].numpy(), atol=1e-5)


def test_they_stand_in_the_table_and_the_same_folder_has_classes_and_tags(place):
    out = place / "all"
    keys = {
        "models": ["pixels", "random"],
        "segmentation_steps": 5,
        "dataset": {
            "tasks": ["knn", "linear_probe", *TASKS], "tags_field": "class", "min_tag_count": 2,
        },
    }  # fmt: skip
    command = ("--encoder", place / "train", "--output", out, "--config", config(place, **keys))
    assert evaluate(*command) == 0
    table = read_csv(out / "summary.csv", "evaluate")
    rows = {(row["model"], row["metric"]): row for row in table}
    assert ("pixels", "knn_3") in rows
    assert ("pixels", "tags_map") in rows
    assert ("pixels", "segmentation_miou") not in rows
    assert ("random", "region_probe_roi") in rows
    assert ("chance", "token_cosine") not in rows
    assert rows["random", "token_cosine"]["better"] == ""
    text = (out / "summary.md").read_text()
    assert "mIoU of linear segmentation" in text
    assert "| random, probe of roi |" in text
    (spread,) = [line for line in text.splitlines() if line.startswith("| mean cosine of tokens ")]
    assert "**" not in spread
    assert "| regions by size and overlap | small | medium | large | free | covered |" in text
    assert "| region probe on the image's tokens in the box |" in text


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"dataset": {"tasks": ["knn"]}}, "shapes asks for no dense task"),
        ({"region_min_visible": 1.0, "dataset": {"tasks": ["regions"]}}, None),
    ],
)
def test_what_is_not_there_is_said(place, tmp_path, capsys, keys, message):
    assert dense(place, tmp_path / "x.json", **keys) == (2 if message else 0)
    assert (message or "") in capsys.readouterr().err


def test_a_mask_of_another_size_is_refused(place, tmp_path, capsys):
    from PIL import Image

    write_scenes(tmp_path / "shapes", 6)
    path = tmp_path / "shapes" / "masks" / "00003.png"
    Image.open(path).resize((20, 48)).save(path)
    command = ("--part", "dense", "--model", "trained", "--dataset", "shapes", "--device", "cpu")
    command += ("--encoder", place / "train", "--output", tmp_path / "x.json")
    assert evaluate(*command, "--config", config(tmp_path)) == 2
    assert "00003: its mask has (20, 48) pixels" in capsys.readouterr().err
