"""A small task of its own for the tests of the trainer: a line, fitted by Adam on every rank."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file

from mlcd.config.text import Text
from mlcd.data.checkpoints import Checkpoint, Snapshot
from mlcd.launch import preemption
from mlcd.launch.process_group import RankPlace, process_group
from mlcd.training.arguments import RankArguments
from mlcd.training.collectives import all_sum
from mlcd.training.metrics import Record
from mlcd.training.tensors import cpu_copy, draw
from mlcd.training.trainer import Trainer, require_finite

#: Built anew after seven of its twelve steps, as a second image size would.
BOUNDARY, TOTAL, STEPS_PER_EPOCH = 7, 12, 6
STAGE, DIM, SHARE = "line", 3, 4
#: Exit status of a rank that was told to stop and has saved.
END = 75


class LineArguments(RankArguments):
    """`sleep_s`: what rank 1 waits for each batch. `stop_at`: the step in which rank 1 is told to
    stop; `infinite_at`: that in which a target is infinite; −1: none."""

    stage: ClassVar[str] = STAGE

    section: Text
    sleep_s: float = 0.0
    stop_at: int = -1
    infinite_at: int = -1
    full_at: int = -1

    def inputs(self) -> list[str]:
        return []


class LineTask:
    """Weights alike on all ranks, a running mean of each rank's own, noise from the seed."""

    unit = "points"
    advice = "lower line.lr"

    def __init__(
        self, arguments: LineArguments, place: RankPlace, checkpoint: Checkpoint | None
    ) -> None:
        self.arguments, self.place = arguments, place
        self.total, self.steps_per_epoch = TOTAL, STEPS_PER_EPOCH
        step = checkpoint.step if checkpoint else 0
        self.steps = range(BOUNDARY) if step < BOUNDARY else range(BOUNDARY, TOTAL)
        self.weight = torch.zeros(DIM, requires_grad=True)
        self.mean = torch.zeros(DIM)
        self.optimizer = torch.optim.Adam([self.weight], lr=0.1)
        if checkpoint:
            tensors = checkpoint.encoder()
            with torch.no_grad():
                self.weight.copy_(tensors.pop("weight"))
            self.optimizer.state[self.weight] = {"step": torch.tensor(float(step)), **tensors}
            self.mean = checkpoint.buffers(place.rank, place.world_size)["mean"]

    def smaller(self) -> str:
        return "take fewer points"

    def describe(self) -> str:
        return f"a line in {DIM} dimensions"

    def batches(self, first: int, last: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for step in range(first, last):
            if self.place.rank == 1:
                time.sleep(self.arguments.sleep_s)
            rng = np.random.default_rng([self.arguments.section.seed, step, self.place.rank])
            x = torch.from_numpy(rng.standard_normal((SHARE, DIM), np.float32))
            y = x @ torch.tensor([1.0, -2.0, 3.0])
            yield x, y * (float("inf") if step == self.arguments.infinite_at else 1)

    def train_step(self, step: int, batches: Iterator[Any], logged: bool) -> Record:
        x, y = next(batches)
        if step == self.arguments.full_at:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB. GPU 0 has")
        torch.manual_seed(draw(self.arguments.section.seed, step, self.place.rank))
        self.mean = 0.9 * self.mean + 0.1 * x.mean(0)
        loss = (x @ self.weight + 0.01 * torch.randn(len(x)) + self.mean.sum() - y).square().mean()
        (total,) = all_sum([loss.item()], self.place.device)
        require_finite("the loss", total)
        self.optimizer.zero_grad()
        loss.backward()
        assert self.weight.grad is not None
        dist.all_reduce(self.weight.grad)
        self.optimizer.step()
        if (step, self.place.rank) == (self.arguments.stop_at, 1):
            os.kill(os.getpid(), signal.SIGUSR2)
            while not preemption.stop_asked():
                time.sleep(0.01)
        return {"loss": total / self.place.world_size, "logged": float(logged)}

    def snapshot(self, step: int) -> Snapshot:
        state = self.optimizer.state[self.weight]
        moments = {name: state[name] for name in ("exp_avg", "exp_avg_sq")}
        tensors = {name: cpu_copy(t) for name, t in {"weight": self.weight, **moments}.items()}
        return Snapshot(
            step=step, start=0, rows={}, buffers={"mean": cpu_copy(self.mean)},
            encoder=tensors if self.place.is_main else None, image_size=0,
        )  # fmt: skip

    def finish(self, checkpoint: Checkpoint) -> None:
        save_file(checkpoint.encoder("weight"), self.arguments.output / "line.safetensors")

    def close(self) -> None:
        del self.weight


def planned(root: Path, *, checkpoint_every: int = 100, **options: Any) -> dict[str, Any]:
    """Return the JSON values of a run's arguments, its folders made."""
    (root / "output").mkdir(parents=True)
    (root / "state").mkdir()
    return LineArguments(
        section=Text(batch_size=8, log_every=4),
        identity="line",
        state=root / "state",
        output=root / "output",
        device="cpu",
        checkpoint_every=checkpoint_every,
        keep=9,
        **options,
    ).model_dump(mode="json")


def train_many(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Train several runs in one process group; a rank that is told to stop ends once it may."""
    if any(run["stop_at"] >= 0 for run in runs):
        preemption.listen(lambda: os._exit(END), grace=60)
    with process_group("cpu") as place:
        return [Trainer(LineArguments.model_validate(run), place, LineTask).run() for run in runs]


def lines(run: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the lines of a run's metrics."""
    text = (Path(run["state"]) / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def saved(run: dict[str, Any]) -> list[str]:
    """Return the names of a run's checkpoints."""
    return sorted(path.name for path in (Path(run["state"]) / "checkpoints").iterdir())
