"""Training on real ranks: DeepSpeed's stages, accumulation, exact resume, other world sizes, NaN.

DeepSpeed's import costs seconds per process, so a few gangs run many small trainings each.
"""

import argparse
import dataclasses
import json
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

import mlcd.stages.export
from helpers.builders import change_record
from helpers.open_clip_tiny import register
from helpers.train_runs import (
    CHECKED,
    CNN,
    HIGH_RES,
    OFFERED,
    ROTARY,
    STAGES,
    TIGHT,
    TRAFFIC,
    TWO,
    checkpoint_of,
    continued,
    kill_when,
    lines,
    losses,
    norms,
    offered,
    planned,
    train_and_fail,
    train_many,
    without_timing,
)  # fmt: skip
from helpers.train_stores import CLASSES, mlcd_train, stores
from mlcd.classifier import NegativeSampler
from mlcd.config import Export
from mlcd.config.train import Train
from mlcd.data.checkpoints import Checkpoint
from mlcd.launch.api import run_gang
from mlcd.launch.options import Resources
from mlcd.losses import cluster_loss
from mlcd.models import trainable
from mlcd.stages.train import fit
from mlcd.stages.train.images import Steps
from mlcd.stages.train.inputs import Index
from mlcd.training.crops import Augment
from mlcd.training.memory import classifier_bytes, encoder_bytes
from mlcd.training.shuffle import Order
from mlcd.utils.errors import UserError
from mlcd.utils.files import read_json


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return stores(tmp_path_factory.mktemp("stores"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory, paths):
    """Small trainings by name, all trained by one gang."""
    root = tmp_path_factory.mktemp("runs")
    variants = {
        "default": ({}, CHECKED),
        "workers": ({}, {"workers": 2}),
        "random": ({"center_init": "random"}, {}),
        "small blocks": ({}, {"memory_limit": "2KiB"}),
        "no negatives": ({"negative_ratio": 0.4 / CLASSES}, {}),
        "high-res": (HIGH_RES, CHECKED),
        "high-res, stage 3": ({**HIGH_RES, "zero_stage": 3}, {"high_res_micro_batch": 2}),
        "cnn": ({"base": CNN}, {"checkpoint_every": 4, "keep": 3, "workers": 1}),
        **OFFERED,
        **ROTARY,
        **{
            f"bf16, stage {stage}": (
                {**OFFERED[offered(stage)][0], "precision": "bf16"}, {"micro_batch": 5},
            )
            for stage in STAGES
        },
    }  # fmt: skip
    made = {
        name: planned(paths, root / name.replace(", ", "-"), options=options, **section)
        for name, (section, options) in variants.items()
    }
    run_gang(train_many, {"runs": list(made.values())}, root, TWO)
    return made


@pytest.mark.parametrize("name", OFFERED)
def test_every_combination_gives_the_losses_of_stage_0(runs, name):
    clip = OFFERED[name][0]["clip_norm"]
    base = runs[offered(0, clip=clip)]
    assert losses(runs[name]) == pytest.approx(losses(base), rel=1e-5)
    assert norms(runs[name]) == pytest.approx(norms(base), rel=1e-3)


@pytest.mark.parametrize("name", ROTARY)
def test_rotary_positions_train_alike_when_divided(runs, name):
    base = runs["rotary, stage 0"]
    assert len(losses(base)) == 6
    assert losses(runs[name]) == pytest.approx(losses(base), rel=1e-5)
    assert norms(runs[name]) == pytest.approx(norms(base), rel=1e-3)


def test_clipping_takes_effect(runs):
    tight, free = runs[offered(0)], runs[offered(0, clip=0)]
    assert min(norms(tight)) > TIGHT
    assert losses(tight)[0] == losses(free)[0] and losses(tight)[2:] != losses(free)[2:]


@pytest.mark.parametrize("stage", STAGES)
def test_bf16_trains_and_is_near(runs, stage):
    run, exact = runs[f"bf16, stage {stage}"], runs[offered(stage)]
    assert losses(run) != losses(exact)
    assert losses(run) == pytest.approx(losses(exact), rel=0.05)
    # Weights are rounded where they are gathered, which stage 0 leaves to autocast.
    near = losses(runs["bf16, stage 0"])
    assert losses(run) == pytest.approx(near, rel=1e-4 if stage < 3 else 2e-3)


@pytest.mark.parametrize("stage", STAGES)
def test_bf16_travels_in_halves_and_once_per_step(runs, stage):
    """Bytes counted where torch calls gloo; three steps of two micro-batches."""
    register()
    run = runs[f"bf16, stage {stage}"]
    found = read_json(Path(run["state"], TRAFFIC))
    section = Train(**run["section"])
    encoder = trainable.build(section.model, section.embedding_dim, section.image_size)
    weights = sum(weight.numel() for weight in encoder.parameters())
    job = fit.job(section, ranks=2, side=32, classes=CLASSES, labels=2, memory_limit=None)
    steps, parts = len(losses(run)), 2
    if stage == 3:  # most weights of so small a network stay gathered
        expected = steps * parts * 2 * weights
        assert found["reducescatter bfloat16"] == pytest.approx(expected, rel=0.01)
        return
    assert found["allreduce bfloat16"] == steps * 2 * weights
    # The classifier's products are in float32 on CPUs.
    whole = encoder_bytes(weights, stage, parts, halves=True)
    whole += parts * classifier_bytes(dataclasses.replace(job, batch=10), halves=False)
    sent = sum((2 if "allreduce" in name else 1) * size for name, size in found.items())
    assert sent / steps == pytest.approx(whole, rel=0.1)


def test_variants_that_must_differ_do(runs):
    assert lines(runs["workers"])[0].keys() == lines(runs["default"])[0].keys()
    assert losses(runs["workers"]) == losses(runs["default"])
    assert losses(runs["random"]) != pytest.approx(losses(runs["default"]), rel=1e-2)
    # A block of one class instead of all twelve: the sums differ in rounding alone.
    assert runs["small blocks"]["memory_limit"] == 2048
    assert losses(runs["small blocks"]) == pytest.approx(losses(runs["default"]), rel=1e-6)


def test_a_mean_over_nothing_is_null(runs):
    for record in lines(runs["no negatives"]):
        assert record["negative_similarity"] is None and record["negative_term"] == 0
        assert record["loss"] == pytest.approx(record["positive_term"])
        assert -1 <= record["positive_similarity"] <= 1


def test_records_and_outputs_are_complete(runs):
    records = lines(runs["default"])
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5]
    for record in records:
        assert tuple(record)[-3:] == ("images_per_s", "data_wait_share", "checksum")
        terms = record["positive_term"] + record["negative_term"]
        assert record["loss"] == pytest.approx(terms, rel=1e-5)
        assert record["images_per_s"] > 0 and 0 <= record["data_wait_share"] <= 1
        assert -1 <= record["feature_cosine"] <= 1 and record["grad_norm"] > 0
    output = Path(runs["default"]["output"])
    encoder = trainable.load(output)
    assert json.loads((output / "encoder.json").read_text())["steps"] == 5
    last = Path(runs["default"]["state"], "checkpoints", "step_00000005", "encoder.safetensors")
    weights = load_file(last)
    for name, weight in encoder.named_parameters():
        assert weight.equal(weights[f"weight/{name}"])
    assert list((output / "tensorboard").glob("events*"))


def test_moments_are_equal_over_stages(runs):
    """The checkpoint's first moments, gathered from flat partitions, are each weight's own."""
    tensors = [
        load_file(checkpoint_of(runs[offered(stage)], 2) / "encoder.safetensors")
        for stage in STAGES
    ]
    for name, expected in tensors[0].items():
        scale = float(expected.abs().max()) or 1.0
        for stage in STAGES[1:]:
            # A key's bias has no gradient but for rounding, which AdamW magnifies.
            assert float((tensors[stage][name] - expected).abs().max()) < 1e-2 * scale, name


# ------------------------------------------------------------------------- high resolution


def test_the_first_phase_is_that_of_a_run_without_a_second(runs):
    assert without_timing(lines(runs["high-res"]))[:5] == without_timing(lines(runs["default"]))


def test_the_second_phase_starts_where_the_first_ended(runs):
    """Its first loss, written plainly: weights resampled by timm, images of the next epoch."""
    run = runs["high-res"]
    records = lines(run)
    assert [record["step"] for record in records] == list(range(1, 11))
    assert [record["epoch"] for record in records] == [0] * 5 + [1] * 5
    # Warm-up of 2 steps to high_res_lr, then a decay of its own; the centers' rate goes along.
    assert records[5]["lr"] == pytest.approx(2.5e-4) and records[6]["lr"] == pytest.approx(5e-4)
    assert records[6]["classifier_lr"] == pytest.approx(5e-3)
    assert 0 < records[9]["lr"] < records[8]["lr"] < records[7]["lr"] <= 5e-4

    section = Train(**run["section"])
    checkpoint = Checkpoint(checkpoint_of(run, 5))
    assert checkpoint.image_size == 32 and Checkpoint(checkpoint_of(run, 6)).image_size == 48
    encoder = trainable.build("test_vit", 16, 32)
    weights = checkpoint.encoder("weight/")
    with torch.no_grad():
        for name, weight in encoder.named_parameters():
            weight.copy_(weights[f"weight/{name}"])
    encoder.trunk.set_input_size(img_size=48)
    index = Index(Path(run["state"], "index"))
    order = Order(index.counts, batch=12, block=4, window=32, seed=0)
    augment = Augment(48, section.crop_min_area, section.flip, 0)
    steps = Steps(index, order, augment, rank=0, world_size=1, micro_batches=1)
    images, labels, _ = steps[order.steps_per_epoch]
    assert images.shape == (12, 3, 48, 48)
    mean, std = (torch.tensor(each).view(3, 1, 1) * 255 for each in (encoder.mean, encoder.std))
    negatives = torch.from_numpy(NegativeSampler(CLASSES, 6, 0).draw(5, 0, CLASSES))
    with torch.no_grad():
        expected = cluster_loss(
            encoder((images.float() - mean) / std), checkpoint.rows(0, CLASSES)["weight"],
            labels, negatives, kind="mlcd", scale=16, margin=0.3, margin_type="cosface",
        )  # fmt: skip
    assert records[5]["loss"] == pytest.approx(float(expected), rel=1e-5)


def test_the_second_phase_under_stage_3_and_accumulation(runs):
    assert losses(runs["high-res, stage 3"]) == pytest.approx(losses(runs["high-res"]), rel=1e-5)


def test_moments_and_centers_resume_into_the_second_phase(runs):
    before, after = (Checkpoint(checkpoint_of(runs["high-res"], step)) for step in (5, 6))
    # A moment moves by a tenth of the new gradient, and row counts never start again.
    moved = [
        float((after.encoder()[key] - value).norm() / value.norm())
        for key, value in before.encoder("exp_avg_sq/").items()
        if not key.endswith("pos_embed")
    ]
    assert np.median(moved) < 0.5
    counts = [each.rows(0, CLASSES)["row_step"] for each in (before, after)]
    assert bool((counts[1] >= counts[0]).all()) and int(counts[0].min()) > 0
    shapes = [each.encoder()["exp_avg/trunk.pos_embed"].shape for each in (before, after)]
    assert shapes == [(1, 5, 64), (1, 10, 64)]
    assert float(after.encoder()["exp_avg_sq/trunk.pos_embed"].min()) >= 0


@pytest.mark.parametrize("name", ["high-res", "cnn"])
def test_the_final_encoder_is_of_the_second_size_and_exports(runs, tmp_path, name):
    folder = Path(runs[name]["output"])
    description = read_json(folder / "encoder.json")
    assert description["image_size"] == 48 == trainable.load(folder).image_size
    parsed = argparse.Namespace(
        encoder=str(folder),
        output=str(tmp_path),
        centroids=None,
        labels=None,
        summary=None,
        lists=[],
    )
    mlcd.stages.export.run(parsed, Export(formats=["timm"]))
    assert read_json(tmp_path / "timm" / "check.json")["image_size"] == 48


# --------------------------------------------------------------- other ranks, other stages


@pytest.fixture(scope="module")
def three_ranks(tmp_path_factory, paths, runs):
    """From 2 ranks' checkpoint of step 2, on 3 ranks to the end."""
    root = tmp_path_factory.mktemp("three")
    three = Resources(ranks_per_node=3)
    run = continued(runs["default"], planned(paths, root / "out", three, CHECKED), 2)
    run_gang(train_many, {"runs": [run]}, root, three)
    return run


def test_from_2_to_3_ranks(runs, three_ranks):
    assert losses(three_ranks) == pytest.approx(losses(runs["default"])[2:], rel=1e-5)


def test_from_2_to_1_ranks_and_other_stages(tmp_path, paths, runs):
    one = Resources(ranks_per_node=1)
    run = continued(runs["default"], planned(paths, tmp_path / "a", one), 2)
    # The stage belongs to the run's identity; between stages the record alone is in the way.
    other = continued(runs["default"], planned(paths, tmp_path / "b", one, zero_stage=3), 3)
    record = checkpoint_of(other, 3) / "complete.json"
    change_record(record, identity=other["identity"])
    run_gang(train_many, {"runs": [run, other]}, tmp_path, one)
    assert losses(run) == pytest.approx(losses(runs["default"])[2:], rel=1e-5)
    assert losses(other) == pytest.approx(losses(runs["default"])[3:], rel=1e-5)


@pytest.fixture(scope="module")
def second_gang(tmp_path_factory, paths, runs, three_ranks):
    """What resumes from other runs' checkpoints on 2 ranks, and what fails; one gang."""
    root = tmp_path_factory.mktemp("second")
    made = {
        "3 to 2": continued(three_ranks, planned(paths, root / "two"), 4),
        # From the end of the first phase, and from within the second.
        "boundary": continued(runs["high-res"], planned(paths, root / "b", **HIGH_RES), 5),
        "beyond": continued(runs["high-res"], planned(paths, root / "c", **HIGH_RES), 7),
    }
    infinite = planned(
        paths, root / "infinite", options={"checkpoint_every": 1}, lr=1, weight_decay=1e30,
        clip_norm=0, warmup_steps=0, schedule="constant",
    )  # fmt: skip
    dying = planned(paths, root / "dying")
    work = {"runs": list(made.values()), "failing": infinite, "dying": dying, "folder": str(root)}
    with pytest.raises(UserError) as caught:
        run_gang(train_and_fail, work, root, TWO)
    seconds = time.time() - read_json(root / "died.json", float)
    messages = [read_json(root / f"message-{rank}.json", str) for rank in range(2)]
    return {**made, "infinite": infinite, "messages": messages, "death": (caught.value, seconds)}


def test_from_3_to_2_ranks(runs, second_gang):
    assert losses(second_gang["3 to 2"]) == pytest.approx(losses(runs["default"])[4:], rel=1e-5)


@pytest.mark.parametrize(("name", "step"), [("boundary", 5), ("beyond", 7)])
def test_resumed_at_or_after_the_boundary_ends_with_the_same_bytes(runs, second_gang, name, step):
    whole, again = runs["high-res"], second_gang[name]
    assert without_timing(lines(again)) == without_timing(lines(whole))[step:]
    for file in ("encoder.safetensors", "encoder.json"):
        assert Path(again["output"], file).read_bytes() == Path(whole["output"], file).read_bytes()


def test_a_loss_that_is_not_finite_stops_the_run(second_gang):
    for message in second_gang["messages"]:
        expected = r"^train: .* not finite at step [2-5]; the last good checkpoint is step_0"
        assert re.match(expected, message)
    assert not Path(second_gang["infinite"]["output"], "encoder.safetensors").exists()


def test_a_rank_killed_in_training_ends_the_run_in_seconds(second_gang):
    error, seconds = second_gang["death"]
    assert re.search("rank 1 of 2 was killed from outside", str(error))
    assert seconds < 30


# ---------------------------------------------------------------------------- interruption


def test_killed_runs_end_with_the_same_bytes(tmp_path, paths, runs):
    """Killed in the first phase and in the second; the run that was not is another gang's."""
    words = [w for key, v in CNN.items() for w in (f"--{key.replace('_', '-')}", str(v))]
    options = [*words, "--checkpoint-every", "4", "--keep", "3",
               "--threads", "1", "--workers", "1"]  # fmt: skip
    whole, killed = Path(runs["cnn"]["output"]), tmp_path / "killed"
    kill_when(mlcd_train(paths, killed, *options), killed, 6)
    kill_when(mlcd_train(paths, killed, *options), killed, 22)
    # The newest checkpoint is damaged as well: the one before is taken, with a warning.
    checkpoints = sorted(killed.glob("state/*/checkpoints/step_*"))
    assert len(checkpoints) >= 2 and checkpoints[-1].name > "step_00000016"
    piece = checkpoints[-1] / "rank_00001.safetensors"
    piece.write_bytes(piece.read_bytes()[:-1] + b"?")
    log = tmp_path / "killed.log"
    process = mlcd_train(paths, killed, *options, log=log)
    assert process.wait(200) == 0, log.read_text()
    assert "rank_00001.safetensors: damaged" in log.read_text()
    assert f"resuming from step {int(checkpoints[-2].name[5:])} of 28" in log.read_text()
    for name in ("encoder.safetensors", "encoder.json"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
    expected = without_timing(lines(runs["cnn"]))
    assert [record["step"] for record in expected] == list(range(1, 29))
    assert without_timing(lines(killed / "metrics.jsonl")) == expected
    last = "state/*/checkpoints/step_00000028/rank_0000{}.safetensors"
    for rank in range(2):
        (one,), (other,) = (folder.glob(last.format(rank)) for folder in (whole, killed))
        assert one.read_bytes() == other.read_bytes()
    # Another run has written over it: the finished gang's encoder is written again.
    (killed / "encoder.safetensors").write_bytes(b"another's")
    assert mlcd_train(paths, killed, *options).wait(200) == 0
    name = "encoder.safetensors"
    assert (whole / name).read_bytes() == (killed / name).read_bytes()
    # The ranks' running statistics differ; the exported ones are their mean.
    means = []
    for rank in range(2):
        with safe_open(next(whole.glob(last.format(rank))), "pt") as file:
            means.append(file.get_tensor("buffers/trunk.bn1.running_mean"))
    exported = load_file(whole / "encoder.safetensors")["trunk.bn1.running_mean"]
    assert not means[0].equal(means[1])
    assert exported.allclose((means[0] + means[1]) / 2, atol=1e-6)
