"""Gangs on this machine: ranks are children of a controller process, which outlives its driver."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil

from mlcd.launch.backend import Backend, check_gpus
from mlcd.launch.call import Call
from mlcd.launch.diagnosis import failure_message
from mlcd.launch.environment import rank_environment
from mlcd.launch.failures import GangFailed
from mlcd.launch.gang_files import KILLED, Record, read_failure
from mlcd.launch.jobs import Job
from mlcd.launch.lease import LEASE, Pulse
from mlcd.utils.logging import LOGGER
from mlcd.utils.processes import machine, process_alive, start_of

_CONTROLLER = "mlcd.launch.controller"
#: Seconds in which a controller ends its ranks and itself.
_END = 15.0


class LocalBackend(Backend["LocalJob"]):
    """The launcher ``local``."""

    def check(self) -> None:
        if self.resources.gpus:
            check_gpus(self.resources.ranks)

    def submit(self, call: Call, record: Record) -> None:
        folder = Path(record.folder)
        call.write(folder)
        with (
            rank_environment(self.resources, {"CUDA_VISIBLE_DEVICES": self._visible_gpus()}),
            (folder / "controller.log").open("wb") as log,
        ):
            process = subprocess.Popen(
                [sys.executable, "-m", _CONTROLLER, str(folder), str(record.ranks)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        record.job_id, record.place = str(process.pid), controller_place(process.pid)
        # It lives on when this process ends, and is reaped by then: no warning about that.
        process.returncode = 0

    def _visible_gpus(self) -> str:
        """Return the GPUs of the ranks: the first of those that this process may use."""
        if not self.resources.gpus:
            return ""
        given = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        ranks = self.resources.ranks
        return ",".join(given[:ranks] if given else map(str, range(ranks)))

    def find_orphan(self, record: Record, home: Path) -> bool:
        for process in psutil.process_iter(["cmdline"]):
            words = process.info["cmdline"] or []
            if record.folder in words and _CONTROLLER in words:
                record.job_id = str(process.pid)
                record.place = controller_place(process.pid)
                return True
        return False

    def job(self, record: Record) -> LocalJob:
        return LocalJob(str(record.job_id), Path(record.folder), record.ranks, record.place)

    def is_alive(self, record: Record, job: LocalJob, home: Path, *, wait: bool) -> bool:
        return job.shows_life() if wait else job.alive()


class LocalJob(Job):
    """Ranks on one machine, children of a controller whose process id is `job_id`.

    `place`: the machine and the controller's start, which tells it from a later process of the same
    id.
    """

    launcher = "local"

    def __init__(self, job_id: str, folder: Path, ranks: int, place: dict[str, Any]) -> None:
        super().__init__(job_id, folder, ranks)
        self._created = place.get("created")
        self._host = place.get("host", "another machine")
        self._is_here = place.get("machine") == machine()
        self._pulse = Pulse(self._heartbeats)

    def describe(self) -> str:
        return f"process {self.job_id} on {self._host}"

    def how_to_end(self) -> str:
        return f"kill {self.job_id}" + ("" if self._is_here else f" (on {self._host})")

    def alive(self) -> bool:
        if self._is_here:
            return process_alive(int(self.job_id), self._created)
        # On another machine: as long as its ranks show life.
        over = self.failure() or len(self.done()) == self.ranks
        return not over and self._pulse.silence() < LEASE

    def shows_life(self) -> bool:
        """As :meth:`alive`, and certain: of another machine's gang two minutes may be waited."""
        told = self._is_here
        while self.alive() and not self._is_here and not self._pulse.beats:
            if not told:
                LOGGER.info("checking whether ranks on another machine still live: two minutes")
                told = True
            time.sleep(self.poll)
        return self.alive()

    def check(self, *, alive: bool) -> None:
        if self.failure():
            # It waits for every rank and knows of one that was killed, whose loss others report.
            self.wait_end(_END if self._is_here else 0)
            failure = self._killed() or self.failure()
        elif alive:
            return
        else:
            missing = min(set(range(self.ranks)) - set(self.done()))
            failure = {"rank": missing, "kind": "ended"}
        assert failure
        raise GangFailed(failure_message(self, failure), restartable=failure["kind"] != "user")

    def can_be_ended(self) -> bool:
        return self._is_here

    def end(self) -> None:
        if not self._is_here:
            LOGGER.warning("the ranks run on another machine and continue there")
            return
        for number in (signal.SIGTERM, signal.SIGKILL):
            if self.alive():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(self.job_id), number)
                self.wait_end(_END)

    def _killed(self) -> dict[str, Any] | None:
        return read_failure(self.files, KILLED)

    def _heartbeats(self) -> list[int]:
        return [path.stat().st_mtime_ns for path in sorted(self.files.glob("rank-*.usage.json"))]


def controller_place(pid: int) -> dict[str, Any]:
    """Return where a controller runs that was started on this machine."""
    return {"machine": machine(), "host": socket.gethostname(), "created": start_of(pid)}
