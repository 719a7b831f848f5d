"""The one loop of all stages that train: resume, build, step, measure, checkpoint, stop, finish.

A stage says by a :class:`TrainingTask` what it trains and what a step is; the rest is here. Random
numbers of a task are functions of (seed, step, rank) or (seed, epoch, sample), so that a resumed
run needs no saved state of any generator.
"""

from __future__ import annotations

import gc
import math
import platform
import re
import time
from collections.abc import Callable, Iterator
from typing import Any, Generic, Protocol, TypeVar

import torch
import torch.distributed as dist

from mlcd.data.checkpoints import Checkpoint, CheckpointWriter, Snapshot, newest, steps
from mlcd.launch import preemption, resume
from mlcd.launch.process_group import RankPlace, process_group
from mlcd.training.arguments import RankArguments
from mlcd.training.collectives import all_sum
from mlcd.training.metrics import Metrics, Record
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER, progress
from mlcd.utils.units import duration

Arguments = TypeVar("Arguments", bound=RankArguments)
Batch = TypeVar("Batch")


class TrainingTask(Protocol[Batch]):
    """What a stage trains on one rank, built for `steps` of a run.

    `steps`: those that what was built is good for, of `total`; where they end before the run does,
    a task is built anew from the checkpoint at their end. `steps_per_epoch`: of the run. `unit`:
    what a batch holds, in the plural. `advice`: what to change if the numbers are not finite.
    """

    steps: range
    total: int
    steps_per_epoch: int
    unit: str
    advice: str

    def describe(self) -> str:
        """Return the data and their sizes in words, for the log."""

    def smaller(self) -> str:
        """Return what to set, and to what, where the GPU's memory is full."""

    def batches(self, first: int, last: int) -> Iterator[Batch]:
        """Iterate over this rank's batches of steps `first` … `last` − 1, read ahead."""

    def train_step(self, step: int, batches: Iterator[Batch], logged: bool) -> Record:
        """Take from `batches` what step `step` (from 0) needs, and update the weights.

        Returns the step's numbers, which go to metrics.jsonl if `logged`; otherwise those that are
        expensive may be wrong. Raises :class:`NotFiniteError` (see :func:`require_finite`) on every
        rank or on none.
        """

    def snapshot(self, step: int) -> Snapshot:
        """Copy to main memory all that the checkpoint after `step` steps holds.

        A collective call; it is the whole time that a checkpoint stops training for.
        """

    def finish(self, checkpoint: Checkpoint) -> None:
        """Write the final files from the run's last checkpoint; rank 0 alone calls it."""

    def close(self) -> None:
        """Give up what was built; the task cannot be used any more."""


#: Builds a stage's task on a rank, from a checkpoint (None: the run begins).
Build = Callable[[Arguments, RankPlace, Checkpoint | None], TrainingTask[Any]]


#: Bytes per second that a disk gives at least.
_SLOW_DISK = 50e6

_LOST_WORKER = (
    "a process that reads images is gone; look at memory (dmesg) and at the disk of the images, or "
    "read without workers (--workers 0); what is saved is kept: the same command resumes"
)


class NotFiniteError(Exception):
    """A number of a step is not finite; the message says which."""


def require_finite(what: str, *values: float) -> None:
    """Raise :class:`NotFiniteError` unless all `values`, which every rank must know, are finite."""
    if not all(map(math.isfinite, values)):
        raise NotFiniteError(what)


def train_rank(arguments: Arguments, build: Build[Arguments]) -> dict[str, Any]:
    """Train to the end as one rank of the process group that the environment describes.

    Returns ``{"steps": number of steps of the run}``. Raises :class:`UserError`.
    """
    minutes = patience(arguments)
    with process_group(arguments.device, inputs=arguments.inputs(), timeout_min=minutes) as place:
        try:
            return Trainer(arguments, place, build).run()
        except RuntimeError as error:
            # torch raises it wherever this process is when a worker dies.
            if found := re.search(r"DataLoader worker.*?(killed by signal: [^.]*|$)", str(error)):
                raise UserError(f"{arguments.stage}: {found[0]}: {_LOST_WORKER}") from None
            raise


def patience(arguments: RankArguments) -> float:
    """Return the minutes that a collective may wait: half an hour, and as long as rank 0 may take
    to verify the largest checkpoint from a slow disk, which the others wait for.
    """
    folders = steps(arguments.checkpoints)
    sizes = (sum(f.stat().st_size for f in folder.iterdir()) for folder in folders)
    try:
        largest = max(sizes, default=0)
    except OSError:  # one that another process removes
        largest = 0
    return 30 + largest / _SLOW_DISK / 60


class Trainer(Generic[Arguments]):
    """One rank's run of the task that `build` makes, in a process group that is there already."""

    def __init__(self, arguments: Arguments, place: RankPlace, build: Build[Arguments]) -> None:
        self._arguments = arguments
        self._place = place
        self._build = build

    def run(self) -> dict[str, Any]:
        """Train from the newest checkpoint to the end; rank 0 writes the final files.

        Every task starts from a checkpoint, the second of a run from that at the end of the first:
        whether the run was killed in between makes no difference. Returns ``{"steps": …}``. Raises
        :class:`UserError` on all ranks if a number is not finite.
        """
        while (done := self._run_task()) is None:
            # One task's weights and moments go before the next one's come.
            gc.collect()
            if self._place.device.type == "cuda":
                # In blocks of its sizes, of which the next one's larger images could use few.
                torch.cuda.empty_cache()
        return {"steps": done}

    def _run_task(self) -> int | None:
        """Build a task and train it to its last step; return that if the run ends there."""
        arguments, place = self._arguments, self._place
        found = agreed_checkpoint(arguments, place)
        start = found.step if found else 0
        # The first words of a rank: what follows reads centers, images and weights for minutes.
        LOGGER.info("rank 0 of %d has started on %s; building the model", place.world_size,
                    platform.node())  # fmt: skip
        task = self._build(arguments, place, found)
        if found:
            LOGGER.info("resuming from step %d of %d", start, task.total)
        LOGGER.info(
            "%s; %d steps of %d %s on %d ranks (%s)", task.describe(), len(task.steps),
            arguments.section.batch_size, task.unit, place.world_size, place.device.type,
        )  # fmt: skip
        writer = CheckpointWriter(
            arguments.checkpoints,
            arguments.identity,
            arguments.section.model_dump(mode="json"),
            rank=place.rank,
            world_size=place.world_size,
            keep=arguments.keep,
            resumed=start,
            provenance=arguments.provenance(),
            wanted=arguments.wants,
        )
        # No rank saves before rank 0 has removed what a killed run left.
        dist.barrier()
        metrics = Metrics(
            arguments.metrics, arguments.output / "tensorboard", place, stage=arguments.stage,
            unit=task.unit, batch_size=arguments.section.batch_size,
            steps_per_epoch=task.steps_per_epoch, resume_step=start,
        )  # fmt: skip
        self._loop(task, start, writer, metrics)
        writer.wait()
        # Every rank's piece is whole before rank 0 says that training is done.
        dist.barrier()
        metrics.close()
        last = task.steps.stop
        if last == task.total and place.is_main:
            task.finish(last_checkpoint(arguments, last))
        task.close()
        return last if last == task.total else None

    def _loop(
        self,
        task: TrainingTask[Any],
        start: int,
        writer: CheckpointWriter,
        metrics: Metrics,
    ) -> None:
        """Take steps `start` … of a task to its last."""
        arguments, place = self._arguments, self._place
        end = task.steps.stop
        batches = metrics.timed(task.batches(start, end))
        began = time.monotonic()
        for step in progress(
            range(start, end), initial=start, label=arguments.stage, unit="step", said=metrics.words
        ):
            finished = step + 1
            logged = finished % arguments.section.log_every == 0 or finished == end
            try:
                record = task.train_step(step, batches, logged)
            except NotFiniteError as error:
                writer.wait()
                # The last checkpoint is whole when all ranks have written their part of it.
                dist.barrier()
                raise UserError(_not_finite(arguments, finished, str(error), task.advice)) from None
            except torch.OutOfMemoryError as error:
                raise UserError(_memory_full(arguments, finished, error, task.smaller())) from None
            metrics.count_step()
            if step == start:
                LOGGER.info("first step after %s", duration(time.monotonic() - began))
            if logged:
                metrics.write(step, record)
            stop = _stop_requested(place)
            if stop or finished == end or arguments.saves_after(finished):
                writer.save(task.snapshot(finished))
            if stop and finished < task.total:
                _await_end(writer, finished)


def agreed_checkpoint(arguments: RankArguments, place: RankPlace) -> Checkpoint | None:
    """Return the checkpoint to resume from: rank 0 checks them, all take its choice."""
    choice: list[str | None] = [None]
    if place.is_main:
        resume.check(arguments.state)
        found = newest(arguments.checkpoints, arguments.identity)
        choice = [found.path.name if found else None]
    dist.broadcast_object_list(choice, 0)
    return Checkpoint(arguments.checkpoints / choice[0], verify=False) if choice[0] else None


def last_checkpoint(arguments: RankArguments, total: int) -> Checkpoint:
    """Return the checkpoint after the run's last step, `total`.

    Final files come from it alone, so that they are equal however it was reached. Raises
    :class:`UserError` if it is gone.
    """
    last = newest(arguments.checkpoints, arguments.identity)
    if last is None or last.step != total:
        raise UserError(f"{arguments.state}: the last checkpoint is gone; rerun the same command")
    return last


def _stop_requested(place: RankPlace) -> bool:
    """Return whether any rank was told to stop: all learn of it at the same step."""
    return any(all_sum([float(preemption.stop_asked())], place.device))


def _await_end(writer: CheckpointWriter, step: int) -> None:
    """Wait for the end: this job is told to stop, and resumes later from what is saved now."""
    writer.wait()
    dist.barrier()
    LOGGER.info("told to stop: saved after step %d", step)
    preemption.saved()


def _memory_full(arguments: RankArguments, step: int, error: Exception, advice: str) -> str:
    asked = ": ".join(str(error).split(". ")[:2])
    return f"{arguments.stage}: the GPU's memory is full at step {step} ({asked}); {advice}"


def _not_finite(arguments: RankArguments, step: int, what: str, advice: str) -> str:
    folder = arguments.checkpoints
    saved = [path.name for path in steps(folder)]
    good = f"the last good checkpoint is {saved[-1]}" if saved else "no checkpoint was written"
    return f"{arguments.stage}: {what} is not finite at step {step}; {good} in {folder}; {advice}"
