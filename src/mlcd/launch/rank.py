"""A rank's side of a gang: find its place, do the work, tell how it ended.

The first rank that fails creates `failed.json` (creation of that name is exclusive, so there is one
first); every other rank sees it and ends, even where no driver lives. The files are described in
:mod:`mlcd.launch.gang_files`.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import threading
import time
import traceback
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, NoReturn

import psutil

from mlcd.launch import preemption
from mlcd.launch.call import Call
from mlcd.launch.gang_files import FAILED, RANK_LOG, STOP, Record, report_failure, try_folder
from mlcd.launch.usage import Usage
from mlcd.utils import disk, fencing
from mlcd.utils.device import keep_products_exact
from mlcd.utils.errors import UserError
from mlcd.utils.files import write_json
from mlcd.utils.logging import setup_logging
from mlcd.utils.processes import start_of

#: Seconds between looks at what others have left, and between heartbeats.
_POLL, _BEAT = 1.0, 5.0
#: Seconds in which the rank that really failed may say so, before the loss of it is reported.
_LOST_PEER = 5.0


class Rank(ABC):
    """What a launcher calls on every rank. It can be started again: the work resumes by itself."""

    def __init__(self, call: Call, folder: Path) -> None:
        self.call = call
        self.folder = folder

    @abstractmethod
    def take_place(self) -> int:
        """Export this rank's place (RANK, WORLD_SIZE, …) to the environment; return the rank."""

    def start_number(self) -> int:
        """Return how often the job has started before."""
        return 0

    def log_size(self) -> int:
        """Return the bytes that earlier starts of this job have left in rank 0's log."""
        return 0

    def begin(self) -> None:  # noqa: B027 (a hook)
        """Called on the main thread before the work."""

    def finish(self) -> None:  # noqa: B027 (a hook)
        """Called on the main thread when the work is done."""

    def __call__(self) -> None:
        self.rank = self.take_place()
        self.number = self.start_number()
        self.files = try_folder(self.folder, self.number)
        if not self.is_wanted():
            print("another job has taken this one's place; nothing to do", file=sys.stderr)
            os._exit(1)
        try:
            self._begin()
        except Exception as error:
            self._fail_by(error)
        self.usage = Usage(self.files / f"rank-{self.rank}.usage.json")
        threading.Thread(target=self._watch_gang, daemon=True).start()
        with fencing.fenced(self.require_right):
            try:
                result = self.call.function(**self.call.kwargs)
                self.usage.update()
                write_json(self.files / f"rank-{self.rank}.done", {"result": result})
            except Exception as error:
                self._fail_by(error)
        self.finish()

    def _begin(self) -> None:
        """Say that this rank has started, and where."""
        self.files.mkdir(exist_ok=True)
        write_json(
            self.files / f"rank-{self.rank}.json",
            {"pid": os.getpid(), "created": start_of(os.getpid()), "host": socket.gethostname(),
             "node": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
             "start": time.time(), "log_size": self.log_size()},
        )  # fmt: skip
        setup_logging(self.folder / RANK_LOG if self.rank == 0 else None, self.call.stage)
        keep_products_exact()
        self.begin()

    def _fail_by(self, error: Exception) -> NoReturn:
        """End this process, and so the gang, by what the work has raised."""
        told = error if isinstance(error, UserError) else disk.explained(error)
        if told is not None:
            self.fail({"kind": "user", "message": str(told)})
        with contextlib.suppress(OSError):
            traceback.print_exception(error)
        message = f"{type(error).__name__}: {error}".splitlines()[0]
        self.fail({"kind": "lost" if _lost_peer(error) else "error", "message": message})

    def is_wanted(self) -> bool:
        """False if a driver has submitted another job meanwhile, or Slurm started this one again.

        A job that was thought lost (its node did not answer) may still run somewhere.
        """
        record = Record.read(self.folder.parent)
        if record is None:
            return self.folder.exists()
        newer = try_folder(self.folder, self.number + 1)
        return record.token == self.folder.name and not newer.exists()

    def require_right(self) -> None:
        """Raise :class:`UserError` if another gang may write this one's output by now."""
        if not self.is_wanted():
            raise UserError(
                f"{self.folder.parent}: another job has taken over; this one ({self.folder.name}) "
                "publishes nothing more"
            )

    def fail(self, failure: dict[str, Any]) -> NoReturn:
        """Record the failure, if it is the gang's first, and end this process at once.

        Without the usual clean-up of Python: destroying process groups whose peers are gone may
        wait for them for half an hour.
        """
        if failure["kind"] == "lost":
            end = time.monotonic() + _LOST_PEER
            while time.monotonic() < end and not (self.files / FAILED).exists():
                time.sleep(0.1)
        # On a full disk nothing may be left: the driver then looks at the disk.
        with contextlib.suppress(OSError):
            report_failure(self.files, {"rank": self.rank, **failure})
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        self._leave()

    def _watch_gang(self) -> None:
        """Write heartbeats with the use of memory; end when another rank has failed.

        And when a driver asks to save and end: the work, if it heeds such, saves first.
        """
        last = -_BEAT
        while not (self.files / FAILED).exists():
            if time.monotonic() - last >= _BEAT:
                last = time.monotonic()
                if not self.is_wanted():
                    break
                # The right may be lost in between.
                with contextlib.suppress(OSError, psutil.Error, UserError):
                    self.usage.update()
            if (self.folder / STOP).exists() and preemption.may_leave():
                break
            time.sleep(_POLL)
        self._leave()

    def _leave(self) -> NoReturn:
        """End this process, saying so: a rank that is gone without a word was killed."""
        with contextlib.suppress(OSError):
            (self.files / f"rank-{self.rank}.left").touch()
        os._exit(1)


def _lost_peer(error: Exception) -> bool:
    """True if the error says no more than that another rank is gone."""
    text = f"{type(error).__name__}: {error}"
    words = r"^Dist(Backend|Network|Store)Error|(closed|reset) by peer|Broken pipe|NCCL error"
    return re.search(words, text) is not None
