"""Training on real ranks: DeepSpeed's stages, accumulation, exact resume, other world sizes, NaN.

DeepSpeed's import costs seconds a process, so one gang runs many small trainings.
"""

import json
import os
import shutil
import signal
import time
from pathlib import Path

import psutil
import pytest
from safetensors import safe_open
from safetensors.torch import load_file
from train_stores import arguments, mlcd_train, stores

import mlcd.train
from mlcd.config.train import Train
from mlcd.encoders import trainable
from mlcd.errors import UserError
from mlcd.launch import Resources, run_gang
from mlcd.train.metrics import TIMING

#: A ViT of 0.4 M parameters: no batch norm, so losses do not depend on the division of a batch.
VIT = {
    "model": "test_vit", "embedding_dim": 16, "image_size": 32, "batch_size": 12, "epochs": 1,
    "lr": 1e-3, "classifier_lr": 1e-2, "warmup_steps": 2, "log_every": 1, "shuffle_block": 4,
    "shuffle_window": 32,
}  # fmt: skip
TWO = Resources(ranks_per_node=2)


def train_many(runs):
    """Train several runs in one process group; what the ranks of the first test do."""
    from mlcd.distributed import process_group
    from mlcd.train.loop import Run, train

    with process_group("cpu") as place:
        for run in runs:
            train(Run(**run), place)


def fail_at_rank_1(run):
    """Train, but rank 1 dies between two steps."""
    from mlcd.train import loop

    if os.environ["RANK"] == "1":
        step = loop._Training._step

        def dying(self, index, data, rate):
            if index == 2:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(self, index, data, rate)

        loop._Training._step = dying
    loop.train_rank(run)


def planned(paths, output, resources=TWO, options=None, **section):
    return mlcd.train.plan(
        arguments(paths, output, **(options or {})), Train(**{**VIT, **section}), resources
    )


def lines(run_or_path):
    path = run_or_path if isinstance(run_or_path, Path) else Path(run_or_path["state"])
    path = path / "metrics.jsonl" if path.is_dir() else path
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_timing(records):
    return [{k: v for k, v in record.items() if k not in TIMING} for record in records]


def losses(run):
    return [record["loss"] for record in lines(run)]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    return stores(tmp_path_factory.mktemp("stores"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory, paths):
    """Small trainings that should give the same losses, by name, all trained by one gang."""
    root = tmp_path_factory.mktemp("runs")
    every_step = {"checkpoint_every": 1, "keep": 9}
    variants = {
        "stage 0": ({"zero_stage": 0}, every_step),
        "stage 1": ({"zero_stage": 1}, every_step),
        "stage 2": ({"zero_stage": 2}, {}),
        "stage 3": ({"zero_stage": 3}, every_step),
        "stage 0, micro": ({"zero_stage": 0}, {"micro_batch": 2}),
        "stage 1, micro": ({"zero_stage": 1}, {"micro_batch": 3}),
        "stage 2, micro": ({"zero_stage": 2}, {"micro_batch": 2}),
        "stage 3, micro": ({"zero_stage": 3}, {"micro_batch": 2}),
        "activations": ({"activation_checkpointing": True}, {}),
        "activations, stage 3": ({"activation_checkpointing": True, "zero_stage": 3}, {}),
        "workers": ({}, {"workers": 2}),
        "bf16": ({"precision": "bf16"}, {}),
        "bf16, stage 3": ({"precision": "bf16", "zero_stage": 3}, {}),
        "random": ({"center_init": "random"}, {}),
    }
    made = {
        name: planned(paths, root / name.replace(", ", "-"), options=options, **section)
        for name, (section, options) in variants.items()
    }
    run_gang(train_many, {"runs": list(made.values())}, root, TWO)
    return made


@pytest.mark.parametrize(
    "name",
    ["stage 0", "stage 2", "stage 3", "stage 0, micro", "stage 1, micro", "stage 2, micro",
     "stage 3, micro", "activations", "activations, stage 3"],
)  # fmt: skip
def test_losses_are_those_of_stage_1(runs, name):
    assert losses(runs[name]) == pytest.approx(losses(runs["stage 1"]), rel=1e-5)
    norms = [[line["grad_norm"] for line in lines(runs[n])] for n in (name, "stage 1")]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)


def test_variants_that_must_differ_do(runs):
    assert lines(runs["workers"])[0].keys() == lines(runs["stage 1"])[0].keys()
    assert losses(runs["workers"]) == losses(runs["stage 1"])
    assert losses(runs["random"]) != pytest.approx(losses(runs["stage 1"]), rel=1e-2)
    for name in ("bf16", "bf16, stage 3"):
        assert losses(runs[name]) != losses(runs["stage 1"])
        assert losses(runs[name]) == pytest.approx(losses(runs["stage 1"]), rel=0.05)


def test_records_and_outputs_are_complete(runs):
    records = lines(runs["stage 1"])
    assert [record["step"] for record in records] == [1, 2, 3, 4, 5]
    for record in records:
        assert tuple(record)[-2:] == TIMING
        terms = record["positive_term"] + record["negative_term"]
        assert record["loss"] == pytest.approx(terms, rel=1e-5)
        assert record["images_per_s"] > 0 and 0 <= record["data_wait_share"] <= 1
        assert -1 <= record["feature_cosine"] <= 1 and record["grad_norm"] > 0
    output = Path(runs["stage 1"]["output"])
    encoder = trainable.load(output)
    assert json.loads((output / "encoder.json").read_text())["steps"] == 5
    last = Path(runs["stage 1"]["state"], "checkpoints", "step_00000005", "encoder.safetensors")
    weights = load_file(last)
    for name, weight in encoder.named_parameters():
        assert weight.equal(weights[f"weight/{name}"])
    assert list((output / "tensorboard").glob("events*"))


def test_moments_are_equal_over_stages(runs):
    """The checkpoint's first moments, gathered from flat partitions, are each weight's own."""
    tensors = {}
    for stage in ("stage 0", "stage 1", "stage 3"):
        folder = Path(runs[stage]["state"], "checkpoints", "step_00000002")
        tensors[stage] = load_file(folder / "encoder.safetensors")
    for name, expected in tensors["stage 0"].items():
        scale = float(expected.abs().max()) or 1.0
        for stage in ("stage 1", "stage 3"):
            assert float((tensors[stage][name] - expected).abs().max()) < 2e-3 * scale, name


def continued(runs, source, target, step, options=None):
    """Give `target` (a fresh run) the checkpoints of `source` up to `step`."""
    folder = Path(target["state"], "checkpoints")
    folder.mkdir()
    name = f"step_{step:08d}"
    shutil.copytree(Path(source["state"], "checkpoints", name), folder / name)
    return target


@pytest.fixture(scope="module")
def three_ranks(tmp_path_factory, paths, runs):
    """From 2 ranks' checkpoint of step 2, on 3 ranks to the end."""
    root = tmp_path_factory.mktemp("three")
    three = Resources(ranks_per_node=3)
    run = planned(paths, root / "out", three, {"checkpoint_every": 1, "keep": 9})
    continued(runs, runs["stage 1"], run, 2)
    run_gang(train_many, {"runs": [run]}, root, three)
    return run


def test_from_2_to_3_ranks(runs, three_ranks):
    assert losses(three_ranks) == pytest.approx(losses(runs["stage 1"])[2:], rel=1e-5)


def test_from_2_to_1_ranks_and_other_stages(tmp_path, paths, runs):
    one = Resources(ranks_per_node=1)
    run = planned(paths, tmp_path / "a", one)
    continued(runs, runs["stage 1"], run, 2)
    # The stage belongs to the run's identity; between stages the record alone is in the way.
    other = planned(paths, tmp_path / "b", one, zero_stage=3)
    continued(runs, runs["stage 1"], other, 3)
    record = Path(other["state"], "checkpoints", "step_00000003", "complete.json")
    record.write_text(record.read_text().replace(runs["stage 1"]["identity"], other["identity"]))
    run_gang(train_many, {"runs": [run, other]}, tmp_path, one)
    assert losses(run) == pytest.approx(losses(runs["stage 1"])[2:], rel=1e-5)
    assert losses(other) == pytest.approx(losses(runs["stage 1"])[3:], rel=1e-5)


def test_from_3_to_2_ranks(tmp_path, paths, runs, three_ranks):
    run = planned(paths, tmp_path / "out")
    continued(runs, three_ranks, run, 4)
    run_gang(train_many, {"runs": [run]}, tmp_path, TWO)
    assert losses(run) == pytest.approx(losses(runs["stage 1"])[4:], rel=1e-5)


def everyone(process):
    """The driver, submitit's controller, and the ranks."""
    return [process, *psutil.Process(process.pid).children(recursive=True)]


def kill_when(process, metrics_of, count):
    """SIGKILL all processes of a training once it has written `count` lines."""
    end = time.monotonic() + 120
    while True:
        assert process.poll() is None and time.monotonic() < end
        found = list(metrics_of.glob("state/*/metrics.jsonl"))
        if found and found[0].read_bytes().count(b"\n") >= count:
            break
        time.sleep(0.01)
    for one in everyone(process):
        one.kill()
    process.wait()


def test_killed_runs_end_with_the_same_bytes(tmp_path, paths):
    """Batch norm and stochastic depth included: their state and noise must come back too."""
    options = ["--model", "test_resnet", "--drop-path", "0.2", "--image-size", "32",
               "--embedding-dim", "8", "--batch-size", "16", "--epochs", "7", "--log-every", "1",
               "--checkpoint-every", "4", "--keep", "3", "--threads", "1",
               "--workers", "1"]  # fmt: skip
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert mlcd_train(paths, whole, *options, log=tmp_path / "whole.log").wait(200) == 0, (
        tmp_path / "whole.log"
    ).read_text()
    kill_when(mlcd_train(paths, killed, *options), killed, 6)
    kill_when(mlcd_train(paths, killed, *options), killed, 15)
    # The newest checkpoint is damaged as well: the one before is taken, with a warning.
    checkpoints = sorted(killed.glob("state/*/checkpoints/step_*"))
    assert len(checkpoints) >= 2
    piece = checkpoints[-1] / "rank_00001.safetensors"
    piece.write_bytes(piece.read_bytes()[:-1] + b"?")
    process = mlcd_train(paths, killed, *options, log=tmp_path / "killed.log")
    log = tmp_path / "killed.log"
    assert process.wait(200) == 0, log.read_text()
    assert "rank_00001.safetensors: damaged" in log.read_text()
    assert f"going on from step {int(checkpoints[-2].name[5:])} of 28" in log.read_text()
    for name in ("encoder.safetensors", "encoder.json"):
        assert (whole / name).read_bytes() == (killed / name).read_bytes(), name
    expected = without_timing(lines(whole / "metrics.jsonl"))
    assert [record["step"] for record in expected] == list(range(1, 29))
    assert without_timing(lines(killed / "metrics.jsonl")) == expected
    last = "state/*/checkpoints/step_00000028/rank_0000{}.safetensors"
    for rank in range(2):
        (one,), (other,) = (folder.glob(last.format(rank)) for folder in (whole, killed))
        assert one.read_bytes() == other.read_bytes()
    # The ranks' running statistics differ; the exported ones are their mean.
    means = []
    for rank in range(2):
        with safe_open(next(whole.glob(last.format(rank))), "pt") as file:
            means.append(file.get_tensor("buffers/trunk.bn1.running_mean"))
    exported = load_file(whole / "encoder.safetensors")["trunk.bn1.running_mean"]
    assert not means[0].equal(means[1])
    assert exported.allclose((means[0] + means[1]) / 2, atol=1e-6)


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, paths):
    run = planned(paths, tmp_path / "out", options={"checkpoint_every": 1}, lr=1e25, clip_norm=0,
                  warmup_steps=0, schedule="constant")  # fmt: skip
    with pytest.raises(
        UserError, match=r"^train: .* not finite at step [2-5]; the last good checkpoint is step_0"
    ):
        run_gang(train_many, {"runs": [run]}, tmp_path, TWO)
    assert not (tmp_path / "out" / "encoder.safetensors").exists()


def test_a_rank_killed_in_training_ends_the_run_in_seconds(tmp_path, paths):
    run = planned(paths, tmp_path / "out")
    start = time.monotonic()
    with pytest.raises(UserError, match=r"rank 1 of 2 was killed from outside"):
        run_gang(fail_at_rank_1, {"run": run}, tmp_path, TWO)
    assert time.monotonic() - start < 60
