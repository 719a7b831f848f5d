"""Trainings that begin at given weights, with rates per layer and layers that stand still."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from helpers.exports import export
from helpers.train_runs import (
    CHECKED,
    STAGES,
    TWO,
    VIT,
    checkpoint_of,
    lines,
    losses,
    planned,
    train,
    without_timing,
)
from helpers.train_stores import arguments, stores
from mlcd.cli import main
from mlcd.commands.checkpoint import export_encoder
from mlcd.config.train import Train
from mlcd.data.checkpoints import Checkpoint
from mlcd.launch.api import run_gang
from mlcd.models import layers, trainable
from mlcd.stages.train import plan
from mlcd.utils.files import read_json

PART = {"layer_decay": 0.5, "freeze_layers": 2, "batch_size": 20}
#: Batch norm: what is frozen must not learn statistics either.
CNN = {**VIT, "model": "test_resnet", "batch_size": 16, "freeze_layers": 2, "epochs": 1}


def train_and_resume(runs, whole, again, step):
    """Train `runs`, then `again` from the checkpoint of `whole` after `step` steps."""
    from mlcd.launch.process_group import process_group

    with process_group("cpu") as place:
        for run in runs:
            train(run, place)
        if place.is_main:
            shutil.copytree(checkpoint_of(whole, step), checkpoint_of(again, step))
        dist.barrier()
        train(again, place)


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """An earlier run of both models, normalized in a way of its own."""
    root = tmp_path_factory.mktemp("earlier")
    for model in ("test_vit", "test_resnet"):
        encoder = trainable.build(model, 16, 32, seed=5)
        encoder.mean = (0.3, 0.4, 0.5)
        (root / model).mkdir()
        trainable.save(encoder, root / model, {})
    return root


@pytest.fixture(scope="module")
def runs(tmp_path_factory, start):
    root = tmp_path_factory.mktemp("runs")
    paths = stores(root / "stores")

    def one(name, options=None, **section):
        model = section.get("base", VIT)["model"]
        first = {"initial": str(start / model), **section}
        return planned(paths, root / name, options=options, **first)

    made = {
        "whole rate": one("whole", batch_size=20),
        "random": one("random", initial=None, batch_size=20),
        "cnn": one("cnn", base=CNN),
        **{
            f"stage {stage}": one(f"s{stage}", CHECKED, zero_stage=stage, **PART)
            for stage in STAGES
        },
    }
    again = one("again", CHECKED, zero_stage=3, **PART)
    work = {"runs": list(made.values()), "whole": made["stage 3"], "again": again, "step": 2}
    run_gang(train_and_resume, work, root, TWO)
    return {**made, "again": again}


def weights(run):
    return load_file(Path(run["output"], "encoder.safetensors"))


def test_a_training_begins_at_the_given_weights(runs):
    assert losses(runs["whole rate"])[0] != losses(runs["random"])[0]
    assert losses(runs["whole rate"])[0] == losses(runs["stage 0"])[0]


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_trains_alike_and_leaves_the_frozen_layers(runs, start, stage):
    run = runs[f"stage {stage}"]
    assert losses(run) == pytest.approx(losses(runs["stage 0"]), rel=1e-5)
    before, after = load_file(start / "test_vit" / "encoder.safetensors"), weights(run)
    numbers = layers.numbers(trainable.build("test_vit", 16, 32))
    for name, number in numbers.items():
        assert torch.equal(before[name], after[name]) == (number < PART["freeze_layers"])


def test_the_first_layers_move_least(runs, start):
    before, after = load_file(start / "test_vit" / "encoder.safetensors"), weights(runs["stage 0"])
    numbers = layers.numbers(trainable.build("test_vit", 16, 32))
    # AdamW's first steps are near the rate, whatever the gradient.
    moved = {
        number: max(
            float((after[name] - before[name]).abs().max())
            for name, other in numbers.items()
            if other == number and before[name].ndim < 2
        )
        for number in range(2, 7)
    }
    for number in range(2, 6):
        assert moved[number] == pytest.approx(moved[number + 1] / 2, rel=0.35)


def test_a_resumed_run_ends_with_the_same_bytes(runs):
    whole, again = runs["stage 3"], runs["again"]
    assert without_timing(lines(again)) == without_timing(lines(whole))[2:]
    for file in ("encoder.safetensors", "encoder.json"):
        assert Path(again["output"], file).read_bytes() == Path(whole["output"], file).read_bytes()


def test_frozen_batch_norms_keep_their_statistics(runs, start):
    before = load_file(start / "test_resnet" / "encoder.safetensors")
    after = weights(runs["cnn"])
    same = {name for name in before if "running" in name and torch.equal(before[name], after[name])}
    assert same and all(
        name.startswith(("trunk.conv1", "trunk.bn1", "trunk.layer1")) for name in same
    )


def test_the_description_says_where_it_began(runs, start, tmp_path):
    run = runs["stage 1"]
    about = read_json(Path(run["output"], "encoder.json"))
    assert about["initial"]["sha256"] == read_json(start / "test_vit" / "encoder.json")["sha256"]
    assert about["initial"]["source"] == "test_vit/encoder.safetensors"
    assert about["initial"]["random"] == [] and about["mean"] == [0.3, 0.4, 0.5]
    assert "initial" not in read_json(Path(runs["random"]["output"], "encoder.json"))
    card = tmp_path / "card"
    export(Path(run["output"]), card, "timm")
    said = (card / "timm" / "README.md").read_text()
    assert "| First weights | `test_vit/encoder.safetensors`, SHA-256 `" in said
    assert str(start) not in said
    # A checkpoint alone knows it too.
    export_encoder(Checkpoint(checkpoint_of(run, 3)), tmp_path)
    assert read_json(tmp_path / "encoder.json")["initial"] == about["initial"]
    assert trainable.load(tmp_path).mean == (0.3, 0.4, 0.5)


def test_another_content_is_another_run_and_another_place_is_not(start, tmp_path):
    paths = stores(tmp_path / "stores", (20,))

    def identity(folder):
        section = Train(**VIT, initial=str(folder))
        return plan(arguments(paths, tmp_path / "out"), section, TWO).identity

    shutil.copytree(start / "test_vit", tmp_path / "copy")
    first = identity(start / "test_vit")
    assert identity(tmp_path / "copy") == first
    trainable.save(trainable.build("test_vit", 16, 32, seed=6), tmp_path / "copy", {})
    assert identity(tmp_path / "copy") != first


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--model", "test_vit", "--freeze-layers", "7"], "train.freeze_layers: test_vit has 7"),
        (["--model", "vgg11", "--drop-path", "0.1"], "train.drop_path: vgg11 has no stochastic"),
        (["--model", "test_vit", "--initial", "nope"], "train.initial: 'nope' is neither a tag"),
    ],
)  # fmt: skip
def test_check_refuses_what_a_rank_would_find(options, told, capsys):
    assert main(["train", "--check", *options]) == 2
    assert told in capsys.readouterr().err


def test_check_says_what_is_loaded(start, capsys):
    words = ["--model", "test_vit", "--embedding-dim", "8", "--image-size", "48"]
    assert main(["train", "--check", *words, "--initial", str(start / "test_vit")]) == 0
    said = capsys.readouterr().err
    assert "1 tensors interpolated to the image size: trunk.pos_embed" in said
    assert "1 tensors not in it, so random: projection.weight" in said
