"""Small trainings in gangs of ranks, and what they leave; for the tests of training."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import time
from pathlib import Path

import psutil

import mlcd.stages.train
from helpers.open_clip_tiny import register
from helpers.train_stores import arguments
from mlcd.config.train import Train
from mlcd.launch.options import Resources
from mlcd.stages.train.arguments import TrainArguments
from mlcd.training.metrics import TIMING
from mlcd.training.traffic import Traffic
from mlcd.utils.errors import UserError
from mlcd.utils.files import write_json

#: A ViT of 0.4 M parameters: no batch norm, so losses do not depend on the division of a batch.
VIT = {
    "model": "test_vit", "embedding_dim": 16, "image_size": 32, "batch_size": 12, "epochs": 1,
    "lr": 1e-3, "classifier_lr": 1e-2, "warmup_steps": 2, "log_every": 1, "shuffle_block": 4,
    "shuffle_window": 32,
}  # fmt: skip
#: Batch norm and stochastic depth: their state and noise must come back too.
CNN = {
    "model": "test_resnet", "drop_path": 0.2, "image_size": 32, "embedding_dim": 8,
    "batch_size": 16, "epochs": 4, "log_every": 1, "high_res_image_size": 48,
    "high_res_epochs": 3, "high_res_lr": 1e-3,
}  # fmt: skip
HIGH_RES = {"high_res_image_size": 48, "high_res_lr": 5e-4}
#: Two layers with torch's own attention, which reads weights past DeepSpeed's hooks; three steps.
SHORT = {"model": "open_clip:tiny-for-tests", "batch_size": 20}
#: Clips every gradient.
TIGHT = 0.1
STAGES = (0, 1, 2, 3)
#: Below the state folder of a run in bfloat16: bytes by collective and type, over all steps.
TRAFFIC = "traffic.json"
TWO = Resources(ranks_per_node=2)
CHECKED = {"checkpoint_every": 1, "keep": 99}
#: ZeRO stage × micro-batches × clipping × activation checkpointing, by name.
OFFERED = {
    f"stage {stage}, micro {micro}, clip {clip:g}{', activations' * activations}": (
        {**SHORT, "zero_stage": stage, "clip_norm": clip, "activation_checkpointing": activations},
        {"micro_batch": micro, **(CHECKED if not activations and not micro and clip else {})},
    )
    for stage, micro, clip, activations in itertools.product(
        STAGES, (0, 5), (TIGHT, 0), (False, True)
    )
}

#: Rotary positions, checkpointed blocks and two image sizes.
ROTARY = {
    f"rotary, stage {stage}{', activations' * activations}": (
        {**SHORT, **HIGH_RES, "model": "mlcd_vit_tiny_patch8", "zero_stage": stage,
         "clip_norm": TIGHT, "activation_checkpointing": activations},
        {},
    )
    for stage, activations in [(0, False), (2, True), (3, True)]
}  # fmt: skip


def offered(stage, micro=0, clip=TIGHT):
    return f"stage {stage}, micro {micro}, clip {clip:g}"


def train_many(runs):
    """Train several runs in one process group, one after the other."""
    from mlcd.launch.process_group import process_group

    register()
    with process_group("cpu") as place:
        for run in runs:
            if run["section"]["precision"] == "bf16":
                train_counted(run, place)
            else:
                train(run, place)


def train_counted(run, place):
    """Train, and leave the bytes of all steps' collectives in the state folder."""
    from mlcd.stages.train.task import EncoderTask

    traffic, step = Traffic(), EncoderTask.train_step

    def counted(self, *arguments):
        with traffic:
            return step(self, *arguments)

    EncoderTask.train_step = counted
    try:
        train(run, place)
    finally:
        EncoderTask.train_step = step
    if place.is_main:
        found = {" ".join(key): size for key, size in traffic.bytes.items()}
        write_json(Path(run["state"], TRAFFIC), found)


def train(run, place):
    from mlcd.stages.train.task import EncoderTask
    from mlcd.training.trainer import Trainer

    return Trainer(TrainArguments.model_validate(run), place, EncoderTask).run()


def train_and_fail(runs, failing, dying, folder):
    """Train `runs`; note the message with which `failing` stops; in `dying`, rank 1 is killed."""
    from mlcd.launch.process_group import process_group
    from mlcd.stages.train.task import EncoderTask

    rank = os.environ["RANK"]
    with process_group("cpu") as place:
        for run in runs:
            train(run, place)
        try:
            train(failing, place)
        except UserError as error:
            write_json(Path(folder) / f"message-{rank}.json", str(error))
        if rank == "1":
            step = EncoderTask.train_step

            def die(self, index, *rest):
                if index == 2:
                    write_json(Path(folder) / "died.json", time.time())
                    os.kill(os.getpid(), signal.SIGKILL)
                return step(self, index, *rest)

            EncoderTask.train_step = die
        train(dying, place)


def planned(paths, output, resources=TWO, options=None, base=VIT, **section):
    """Return the JSON values that each rank of `mlcd train` would be given."""
    register()
    parsed = arguments(paths, output, **(options or {}))
    run = mlcd.stages.train.plan(parsed, Train(**{**base, **section}), resources)
    return run.model_dump(mode="json")


def lines(run_or_path):
    path = run_or_path if isinstance(run_or_path, Path) else Path(run_or_path["state"])
    path = path / "metrics.jsonl" if path.is_dir() else path
    return [json.loads(line) for line in path.read_text().splitlines()]


def without_timing(records):
    return [{k: v for k, v in record.items() if k not in TIMING} for record in records]


def losses(run):
    return [record["loss"] for record in lines(run)]


def norms(run):
    return [record["grad_norm"] for record in lines(run)]


def checkpoint_of(run, step):
    return Path(run["state"], "checkpoints", f"step_{step:08d}")


def continued(source, target, step):
    """Give `target` (a fresh run) the checkpoint of `source` after `step` steps."""
    shutil.copytree(checkpoint_of(source, step), checkpoint_of(target, step))
    return target


def everyone(process):
    """The driver, the controller of its gang, and the ranks."""
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
