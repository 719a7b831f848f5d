"""What every launcher can do for the driver of a gang: submit it, and find it again."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Generic, TypeVar

from mlcd.launch.call import Call
from mlcd.launch.gang_files import Record
from mlcd.launch.jobs import Job
from mlcd.launch.options import Resources
from mlcd.utils.errors import UserError

AnyJob = TypeVar("AnyJob", bound=Job)


class Backend(ABC, Generic[AnyJob]):
    """One launcher: ``local``, ``slurm`` or ``inline``. Stateless but for the resources asked for.

    A record is given to the backend of the launcher that stands in it, which need not be the one
    that is asked for now.
    """

    def __init__(self, resources: Resources) -> None:
        self.resources = resources

    def check(self) -> None:
        """Raise :class:`UserError` if this machine cannot launch what is asked for."""

    @abstractmethod
    def submit(self, call: Call, record: Record) -> None:
        """Start the gang of `record` in its folder; set the record's `job_id` and `place`.

        Raises :class:`UserError` if the launcher refuses it.
        """

    @abstractmethod
    def find_orphan(self, record: Record, home: Path) -> bool:
        """Look for a gang whose driver was killed before it knew the job's id.

        Sets the record's `job_id` and `place` and returns True if there is one.
        """

    @abstractmethod
    def job(self, record: Record) -> AnyJob:
        """Return the job of a record that has a `job_id`."""

    @abstractmethod
    def is_alive(self, record: Record, job: AnyJob, home: Path, *, wait: bool) -> bool:
        """True if the recorded job works or will.

        `wait` as long as it takes to know; otherwise a job that may be alive counts as alive.
        """


def recorded_job(home: Path, backends: dict[str, Backend[Any]]) -> tuple[Record, Job] | None:
    """Return the record in the folder `home` with its job, alive or not; None if there is none."""
    record = Record.read(home)
    if record is None or (backend := backends.get(record.launcher)) is None:
        return None
    if record.job_id is None:
        if not backend.find_orphan(record, home):
            return None
        record.write(home)
    return record, backend.job(record)


def check_gpus(ranks: int) -> None:
    """Raise :class:`UserError` if this machine has fewer GPUs than `ranks`."""
    import torch

    found = torch.cuda.device_count()
    if not found:
        raise UserError("--device cuda: this machine has no GPU; give --device cpu")
    if found < ranks:
        raise UserError(
            f"--ranks-per-node: {ranks} needs as many GPUs, and this machine has {found}; give "
            f"--ranks-per-node {found} "
            "(with Snakemake: the rule's resource of that name)"
        )
