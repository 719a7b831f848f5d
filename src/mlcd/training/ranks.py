"""What every rank of a training does alike: agree on a checkpoint, save, make room, end."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist

from mlcd import notice
from mlcd.distributed import Place, all_sum
from mlcd.errors import UserError
from mlcd.progress import LOGGER
from mlcd.stores.checkpoints import Checkpoint, Writer, newest
from mlcd.training.numbers import cpu_copy
from mlcd.training.zero import ZeroEngine


class Run(Protocol):
    """Of a rank's arguments, those that say where and as what its run is saved."""

    @property
    def section(self) -> dict[str, Any]:
        """The stage's section of the config."""

    @property
    def identity(self) -> str:
        """Hash of all that the run depends on."""

    @property
    def state(self) -> str:
        """Folder of checkpoints and metrics."""

    @property
    def keep(self) -> int:
        """Checkpoints kept."""


def checkpoints(run: Run) -> Path:
    """Return the folder of a run's checkpoints."""
    return Path(run.state) / "checkpoints"


def agreed_checkpoint(run: Run, place: Place) -> Checkpoint | None:
    """Return the checkpoint to go on from: rank 0 checks them, all take its choice."""
    choice: list[str | None] = [None]
    if place.is_main:
        found = newest(checkpoints(run), run.identity)
        choice = [found.path.name if found else None]
    dist.broadcast_object_list(choice, 0)
    return Checkpoint(checkpoints(run) / choice[0], verify=False) if choice[0] else None


def checkpoint_writer(run: Run, place: Place, step: int) -> Writer:
    """Return this rank's writer of a run that goes on after `step` steps; all ranks call it."""
    writer = Writer(
        checkpoints(run),
        run.identity,
        run.section,
        rank=place.rank,
        world_size=place.world_size,
        keep=run.keep,
        resumed=step,
    )
    dist.barrier()
    return writer


def whole_state(engine: ZeroEngine, place: Place) -> dict[str, torch.Tensor] | None:
    """Return copies of weights and moments on rank 0, None on the others; all ranks call it."""
    tensors: dict[str, torch.Tensor] | None = {} if place.is_main else None
    for name, tensor in engine.state():
        if tensors is not None:
            tensors[name] = cpu_copy(tensor)
    return tensors


def told_to_stop(place: Place) -> bool:
    """Return whether any rank was told to stop: all learn of it at the same step."""
    return any(all_sum([float(notice.stop_asked())], place.device))


def make_room(writer: Writer, step: int) -> None:
    """Wait for the end: this job is told to stop, and goes on later from what is saved now."""
    writer.wait()
    dist.barrier()
    LOGGER.info("told to stop: saved after step %d", step)
    notice.saved()


def last_checkpoint(run: Run, total: int) -> Checkpoint:
    """Return the checkpoint after the run's last step, `total`: final files come from it alone,
    so that they are equal however it was reached.
    """
    last = newest(checkpoints(run), run.identity)
    if last is None or last.step != total:
        raise UserError(f"{run.state}: the last checkpoint is gone; rerun the same command")
    return last
