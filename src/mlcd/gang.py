"""The rank's side of a gang (see :mod:`mlcd.launch`): find one's place, tell how it ended."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from mlcd.errors import UserError
from mlcd.files import write_json
from mlcd.progress import setup_logging

FAILED = "failed.json"
REQUEUED = "requeued"
RANK_LOG = "rank-0.log"
_PR_SET_PDEATHSIG = 1


class Task:
    """What submitit calls on every rank. It can be requeued: `function` resumes by itself."""

    def __init__(
        self, function: Callable[..., Any], kwargs: dict[str, Any], folder: Path, *, local: bool
    ) -> None:
        self.function = function
        self.kwargs = kwargs
        self.folder = folder
        self.local = local

    def __call__(self) -> None:
        rank = self._take_place()
        for word in ("done", "left"):
            (self.folder / f"rank-{rank}.{word}").unlink(missing_ok=True)
        if rank == 0:
            (self.folder / REQUEUED).unlink(missing_ok=True)
        process = psutil.Process()
        write_json(
            self.folder / f"rank-{rank}.json",
            {"pid": process.pid, "created": process.create_time(), "host": socket.gethostname()},
        )
        stage = self.function.__module__.removeprefix("mlcd.").split(".")[0]
        setup_logging(self.folder / RANK_LOG if rank == 0 else None, stage)
        threading.Thread(target=self._leave_with_others, args=(rank,), daemon=True).start()
        try:
            result = self.function(**self.kwargs)
        except UserError as error:
            self._fail(rank, {"kind": "user", "message": str(error)})
        except Exception as error:
            traceback.print_exc()
            message = f"{type(error).__name__}: {error}".splitlines()[0]
            self._fail(rank, {"kind": "error", "message": message})
        write_json(self.folder / f"rank-{rank}.done", {"result": result})

    def checkpoint(self) -> Any:
        """Return what submitit requeues at the time limit or at preemption: the same task."""
        import submitit

        # Ranks that now lose rank 0 must not count as failed, nor as killed.
        (self.folder / REQUEUED).touch()
        for place in self.folder.glob("rank-*.json"):
            place.unlink()
        return submitit.helpers.DelayedSubmission(self)

    def _take_place(self) -> int:
        """Export this rank's place by submitit's helper and return the rank."""
        import submitit

        place = submitit.helpers.TorchDistributedEnvironment()
        place.export(set_cuda_visible_devices=False, overwrite=True)
        if self.local:
            # The machine's own name may not resolve, or to an address that nothing listens on.
            os.environ["MASTER_ADDR"] = "127.0.0.1"
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
            parent = os.getppid()
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it died before the line above
                os._exit(1)
        return place.rank

    def _fail(self, rank: int, failure: dict[str, Any]) -> None:
        """Record the failure, if it is the gang's first, and end this process at once.

        Without the usual clean-up of Python: destroying process groups whose peers are gone may
        wait for them for half an hour.
        """
        if not (self.folder / REQUEUED).exists():
            temporary = self.folder / f".{FAILED}.{rank}"
            temporary.write_text(json.dumps({"rank": rank, **failure}))
            with contextlib.suppress(FileExistsError):
                os.link(temporary, self.folder / FAILED)
        sys.stdout.flush()
        sys.stderr.flush()
        self._leave(rank)

    def _leave_with_others(self, rank: int) -> None:
        """End this process when another rank has failed, whatever call it is blocked in."""
        while not (self.folder / FAILED).exists():
            time.sleep(1)
        self._leave(rank)

    def _leave(self, rank: int) -> None:
        """End this process, saying so: a rank that is gone without a word was killed."""
        (self.folder / f"rank-{rank}.left").touch()
        os._exit(1)


def run_inline(function: Callable[..., Any], kwargs: dict[str, Any], threads: int) -> Any:
    """Call `function` as the only rank, in this process."""
    place = {
        "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": str(threads), "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    before = {name: os.environ.get(name) for name in place}
    os.environ.update(place)
    try:
        return function(**kwargs)
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


def free_port() -> int:
    """Return a port of the loopback interface that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
