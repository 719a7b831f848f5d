"""Small trainings in gangs of ranks, and what they leave; for the tests of training."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path

import psutil
from open_clip_tiny import register
from train_stores import arguments

import mlcd.train
from mlcd.config.train import Train
from mlcd.errors import UserError
from mlcd.files import write_json
from mlcd.launch import Resources
from mlcd.training.metrics import TIMING

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
TWO = Resources(ranks_per_node=2)
CHECKED = {"checkpoint_every": 1, "keep": 99}


def train_many(runs):
    """Train several runs in one process group, one after the other."""
    from mlcd.distributed import process_group
    from mlcd.train.loop import Run, train

    register()
    with process_group("cpu") as place:
        for run in runs:
            train(Run(**run), place)


def train_and_fail(runs, failing, dying, folder):
    """Train `runs`; note the message with which `failing` stops; in `dying`, rank 1 is killed."""
    from mlcd.distributed import process_group
    from mlcd.train import loop

    rank = os.environ["RANK"]
    with process_group("cpu") as place:
        for run in runs:
            loop.train(loop.Run(**run), place)
        try:
            loop.train(loop.Run(**failing), place)
        except UserError as error:
            write_json(Path(folder) / f"message-{rank}.json", str(error))
        if rank == "1":
            step = loop._Training._step

            def die(self, index, data):
                if index == 2:
                    write_json(Path(folder) / "died.json", time.time())
                    os.kill(os.getpid(), signal.SIGKILL)
                return step(self, index, data)

            loop._Training._step = die
        loop.train(loop.Run(**dying), place)


def planned(paths, output, resources=TWO, options=None, base=VIT, **section):
    return mlcd.train.plan(
        arguments(paths, output, **(options or {})), Train(**{**base, **section}), resources
    )


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
