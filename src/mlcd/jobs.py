"""A submitted gang as the driver sees it: alive or not, and how to end it (:mod:`mlcd.driver`)."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import psutil

from mlcd import slurm
from mlcd.gang import FAILED, log_of
from mlcd.lease import LEASE, Pulse, machine, process_alive, start_of
from mlcd.progress import LOGGER


class Job(ABC):
    """A gang of `ranks` ranks in `folder`, known to its launcher as `job_id`."""

    #: Seconds between looks at a gang's files.
    poll = 0.2

    def __init__(self, job_id: str, folder: Path, ranks: int) -> None:
        self.job_id = job_id
        self.folder = folder
        self.ranks = ranks

    @property
    def files(self) -> Path:
        """The folder of the job's newest start."""
        tries = self.folder.glob("try-*")
        return max(tries, key=lambda path: int(path.name[4:]), default=self.folder / "try-0")

    def done(self) -> list[int]:
        """Return the ranks whose function has returned."""
        files = self.files
        return [rank for rank in range(self.ranks) if (files / f"rank-{rank}.done").exists()]

    def result(self) -> Any:
        """Return rank 0's result."""
        return json.loads((self.files / "rank-0.done").read_text())["result"]

    def failure(self) -> dict[str, Any] | None:
        """Return what the first rank that failed has left, or None."""
        with contextlib.suppress(FileNotFoundError):
            return json.loads((self.files / FAILED).read_text())
        return None

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

    def silent_ranks(self) -> list[int]:
        """Return the ranks that left neither a result nor a word, though they may still run."""
        files = self.files
        words = ("done", "left")
        return [
            rank
            for rank in range(self.ranks)
            if not any((files / f"rank-{rank}.{word}").exists() for word in words)
        ]

    @abstractmethod
    def alive(self) -> bool:
        """True while the launcher has the job queued or running, or does not answer."""

    @abstractmethod
    def end(self) -> None:
        """End all ranks; returns when they are gone, as far as the driver can see."""


class LocalJob(Job):
    """Ranks on one machine, children of submitit's controller, whose process id is `job_id`.

    `where`: the machine and the controller's start, which tells it from a later process of the same
    id.
    """

    def __init__(self, job_id: str, folder: Path, ranks: int, where: dict[str, Any]) -> None:
        super().__init__(job_id, folder, ranks)
        self.where = where
        self._pulse = Pulse(self._signs)

    @staticmethod
    def started(job_id: str) -> dict[str, Any]:
        """Return the `where` of a controller that runs on this machine."""
        return {"machine": machine(), "created": start_of(int(job_id))}

    @staticmethod
    def find(folder: Path) -> str:
        """Return the id of the controller of the gang in `folder`, or "" if there is none here."""
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if str(folder) in words and "submitit.local._local" in words:
                return str(process.pid)
        return ""

    def alive(self) -> bool:
        if self.where["machine"] == machine():
            return process_alive(int(self.job_id), self.where["created"])
        # On another machine: as long as its ranks show life.
        over = self.failure() or len(self.done()) == self.ranks
        return not over and self._pulse.silence() < LEASE

    def shows_life(self) -> bool:
        """As :meth:`alive`, and certain: of another machine's gang two minutes may be waited."""
        told = self.where["machine"] == machine()
        while self.alive() and self.where["machine"] != machine() and not self._pulse.beats:
            if not told:
                LOGGER.info("looking whether ranks on another machine still live: two minutes")
                told = True
            time.sleep(self.poll)
        return self.alive()

    def dead_ranks(self) -> list[int]:
        """Return ranks that are gone without a word."""
        if self.where["machine"] != machine():
            return []
        silent = self.silent_ranks()
        return [
            rank
            for rank, place in self.places().items()
            if rank in silent and not process_alive(place["pid"], place["created"])
        ]

    def end(self) -> None:
        if self.where["machine"] != machine():
            LOGGER.warning("the ranks run on another machine and go on there")
            return
        if self.alive():
            # The controller then interrupts its ranks and kills them after a second.
            os.kill(int(self.job_id), signal.SIGINT)
            self.wait_end(10)
        ranks = [(place["pid"], place["created"]) for place in self.places().values()]
        for pid, created in [(int(self.job_id), self.where["created"]), *ranks]:
            if process_alive(pid, created):
                os.kill(pid, signal.SIGKILL)

    def _signs(self) -> list[int]:
        return [path.stat().st_mtime_ns for path in sorted(self.files.glob("rank-*.usage.json"))]


class SlurmJob(Job):
    """One Slurm job with all ranks."""

    poll = 1.0  # the files lie on a network disk

    def __init__(self, job_id: str, folder: Path, ranks: int) -> None:
        super().__init__(job_id, folder, ranks)
        self.watch = slurm.Watch(job_id)
        #: What the driver has told of it, and the start whose failure it has waited out.
        self.told = ""
        self.settled: Path | None = None
        #: True if the driver has ended it.
        self.ended_here = False

    def alive(self) -> bool:
        return self.watch.look().alive

    def end(self) -> None:
        end = time.monotonic() + 60
        while time.monotonic() < end:
            answer = slurm.call("scancel", self.job_id)
            if answer is not None and answer.returncode == 0:
                break
            time.sleep(2)  # the controller is away
        self.watch.look(now=True)
        self.wait_end(60)

    def first_dead(self) -> tuple[int, str] | None:
        """Return the rank that srun saw end first by a signal, and what srun called it; or None."""
        pattern = r"srun: error: \S+: tasks? (\d+)[^:]*: (.+)"
        for line in self._said().splitlines():
            if found := re.search(pattern, line):
                word = found[2]
                # By itself, or because it lost the other: its own report says more.
                return None if "exit code" in word else (int(found[1]), word)
        return None

    def ran_out_of_memory(self) -> bool:
        """True if Slurm or the kernel says so."""
        said = re.search(r"oom[-_ ]kill|exceeded .*memory limit", self._said(), re.IGNORECASE)
        return self.watch.status.state == "OUT_OF_MEMORY" or said is not None

    def was_killed(self) -> bool:
        """True if a rank is known to have been ended from outside: it leaves no word."""
        return self.ran_out_of_memory() or self.first_dead() is not None

    def _said(self) -> str:
        """Return what Slurm and rank 0 wrote since the newest start of the job."""
        sizes = [place["log_size"] for place in self.places().values()]
        return self.output(0, since=min(sizes, default=0))
