"""A submitted gang as the driver sees it: its files, and what its launcher says of it."""

from __future__ import annotations

import contextlib
import json
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from mlcd.launch.gang_files import FAILED, STOP, log_of, newest_try, read_failure
from mlcd.slurm.client import Status


class Job(ABC):
    """A gang of `ranks` ranks in `folder`, known to its launcher as `job_id`."""

    #: Name of the launcher.
    launcher: str
    #: Seconds between looks at a gang's files.
    poll = 0.2
    #: True if SIGTERM to the driver, as when its machine shuts down, leaves the job running.
    outlives_shutdown = False
    #: True if its ranks are processes of their own, whose use is recorded.
    has_accounts = True

    def __init__(self, job_id: str, folder: Path, ranks: int) -> None:
        self.job_id = job_id
        self.folder = folder
        self.ranks = ranks

    @property
    def files(self) -> Path:
        """The folder of the job's newest start."""
        return newest_try(self.folder)

    def done(self) -> list[int]:
        """Return the ranks whose function has returned."""
        files = self.files
        return [rank for rank in range(self.ranks) if (files / f"rank-{rank}.done").exists()]

    def result(self) -> Any:
        """Return rank 0's result."""
        return json.loads((self.files / "rank-0.done").read_text())["result"]

    def failure(self) -> dict[str, Any] | None:
        """Return what the first rank that failed has left, or None."""
        return read_failure(self.files, FAILED)

    def output(self, rank: int, since: int = 0) -> str:
        """Return what the rank wrote to stdout and stderr, or its end if that is long.

        `since`: bytes at the beginning that are left out.
        """
        path = log_of(self.folder, self.job_id, rank)
        if not path.exists():
            return ""
        with path.open("rb") as handle:
            handle.seek(max(since, path.stat().st_size - 20_000))
            return handle.read().decode("utf-8", "replace")

    def wait_end(self, seconds: float) -> None:
        """Wait until the job has ended, `seconds` at most."""
        end = time.monotonic() + seconds
        while self.alive() and time.monotonic() < end:
            time.sleep(self.poll)

    def places(self) -> dict[int, dict[str, Any]]:
        """Return rank → what it left at its start, of the ranks that have started."""
        found, files = {}, self.files
        for rank in range(self.ranks):
            with contextlib.suppress(FileNotFoundError):
                found[rank] = json.loads((files / f"rank-{rank}.json").read_text())
        return found

    def status(self) -> Status:
        """Return what the launcher says of a job that has ended, for its record."""
        return Status("")

    @abstractmethod
    def alive(self) -> bool:
        """True while the launcher has the job queued or running, or does not answer."""

    @abstractmethod
    def check(self, *, alive: bool) -> None:
        """Return if all is well; `alive` was asked before the ranks' files were read.

        Raises :class:`GangFailed` if a rank has failed or the gang has ended without a result, and
        :class:`Transient` if it may be submitted again.
        """

    @abstractmethod
    def describe(self) -> str:
        """Return words for the job: its id, and where it runs."""

    @abstractmethod
    def how_to_end(self) -> str:
        """Return the command by which a user ends the job."""

    def can_be_ended(self) -> bool:
        """True if :meth:`end` reaches the ranks from this machine."""
        return True

    def can_save(self) -> bool:
        """True if ranks work that may be asked to save."""
        return bool(self.places())

    def ask_to_save(self) -> None:
        """Ask the ranks to save and end; they look for this every second."""
        (self.folder / STOP).touch()

    @abstractmethod
    def end(self) -> None:
        """End all ranks; returns when they are gone, as far as the driver can see."""
