"""A submitted gang as the driver sees it: alive or not, and how to end it (:mod:`mlcd.launch`)."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import psutil


class Job(ABC):
    """A gang of `ranks` ranks in `folder`, known to its launcher as `job_id`."""

    def __init__(self, job_id: str, folder: Path, ranks: int) -> None:
        self.job_id = job_id
        self.folder = folder
        self.ranks = ranks

    @classmethod
    def started(cls, job_id: str, folder: Path, ranks: int) -> Job:
        """Return the job that was submitted just now."""
        return cls(job_id, folder, ranks)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Job:
        """Return the job that :meth:`record` described. Raises KeyError or TypeError if damaged."""
        return cls(**{**record, "folder": Path(record["folder"])})

    def record(self) -> dict[str, Any]:
        """Return plain values from which another driver finds the job again."""
        return {"job_id": self.job_id, "folder": str(self.folder), "ranks": self.ranks}

    def done(self, rank: int) -> bool:
        """True if the rank's function has returned."""
        return (self.folder / f"rank-{rank}.done").exists()

    def left(self, rank: int) -> bool:
        """True if the rank failed, or ended because another had."""
        return (self.folder / f"rank-{rank}.left").exists()

    def output(self, rank: int) -> str:
        """Return what the rank wrote to stdout and stderr, or its end if that is long."""
        path = self.folder / f"{self.job_id}_{rank}_log.out"
        if not path.exists():
            return ""
        with path.open("rb") as handle:
            handle.seek(max(0, path.stat().st_size - 20_000))
            return handle.read().decode("utf-8", "replace")

    def wait_end(self, seconds: float) -> None:
        """Wait until the job has ended, `seconds` at most."""
        end = time.monotonic() + seconds
        while self.alive() and time.monotonic() < end:
            time.sleep(0.05)

    def dead_ranks(self) -> list[int]:
        """Return ranks that are gone without a word, where the driver can see that."""
        return []

    @abstractmethod
    def alive(self) -> bool:
        """True while the launcher has the job queued or running, or does not answer."""

    @abstractmethod
    def end(self) -> None:
        """End all ranks; returns when they are gone, as far as the driver can see."""


class LocalJob(Job):
    """Ranks on this machine, children of submitit's controller, whose process id is `job_id`."""

    def __init__(
        self, job_id: str, folder: Path, ranks: int, created: float = 0.0, host: str = ""
    ) -> None:
        super().__init__(job_id, folder, ranks)
        # The time of creation tells the controller from a later process of the same id.
        self.created = created
        self.host = host

    @classmethod
    def started(cls, job_id: str, folder: Path, ranks: int) -> LocalJob:
        created = psutil.Process(int(job_id)).create_time()
        return cls(job_id, folder, ranks, created, socket.gethostname())

    def record(self) -> dict[str, Any]:
        return {**super().record(), "created": self.created, "host": self.host}

    def alive(self) -> bool:
        return self.host == socket.gethostname() and _alive(int(self.job_id), self.created)

    def dead_ranks(self) -> list[int]:
        return [
            rank
            for rank, (pid, created) in self._processes().items()
            if not _alive(pid, created) and not self.done(rank) and not self.left(rank)
        ]

    def end(self) -> None:
        if self.alive():
            # The controller then interrupts its ranks and kills them after a second.
            os.kill(int(self.job_id), signal.SIGINT)
            self.wait_end(10)
        for pid, created in [(int(self.job_id), self.created), *self._processes().values()]:
            if _alive(pid, created):
                os.kill(pid, signal.SIGKILL)

    def _processes(self) -> dict[int, tuple[int, float]]:
        """Return rank → (process id, time of creation) of the ranks that have started."""
        found = {}
        for rank in range(self.ranks):
            try:
                record = json.loads((self.folder / f"rank-{rank}.json").read_text())
            except FileNotFoundError:
                continue
            found[rank] = (record["pid"], record["created"])
        return found


class SlurmJob(Job):
    """One Slurm job with all ranks, asked about by squeue (which needs no accounting database)."""

    #: Seconds between calls of squeue, which a busy controller answers slowly.
    interval = 5.0

    def __init__(self, job_id: str, folder: Path, ranks: int) -> None:
        super().__init__(job_id, folder, ranks)
        self._asked = 0.0
        self._alive = True

    def alive(self) -> bool:
        if time.monotonic() - self._asked < self.interval:
            return self._alive
        command = ["squeue", "--noheader", "--format=%T", f"--jobs={self.job_id}"]
        try:
            answer = subprocess.run(command, capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired):
            return self._alive
        finally:
            self._asked = time.monotonic()
        if answer.returncode == 0:
            ended = (
                "",
                "COMPLETED",
                "FAILED",
                "CANCELLED",
                "TIMEOUT",
                "NODE_FAIL",
                "OUT_OF_MEMORY",
            )
            self._alive = answer.stdout.strip() not in ended
        elif "Invalid job id" in answer.stderr:
            self._alive = False
        # Any other error is the controller's, not the job's: it counts as alive until known.
        return self._alive

    def end(self) -> None:
        subprocess.run(["scancel", self.job_id], capture_output=True, timeout=60, check=False)
        self._asked = 0.0
        self.wait_end(60)


def _alive(pid: int, created: float) -> bool:
    """True if the process of this id and time of creation runs (a zombie does not)."""
    try:
        process = psutil.Process(pid)
        return process.create_time() == created and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
