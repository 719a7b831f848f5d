"""The rank's side of a gang (see :mod:`mlcd.launch`): find one's place, tell how it ended.

A gang's folder has a folder `try-N` for each start of the job (Slurm may start it again). In it
each rank leaves `rank-K.json` at its start, `rank-K.usage.json` now and then, and `rank-K.done` at
its end. The first rank that fails creates `failed.json` (creation of that name is exclusive, so
there is one first); every other rank sees it and ends, even where no driver lives.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from mlcd import notice, slurm
from mlcd.errors import UserError
from mlcd.files import write_json
from mlcd.lease import start_of
from mlcd.progress import LOGGER, setup_logging
from mlcd.usage import Usage

FAILED = "failed.json"
RECORD = "job.json"
RANK_LOG = "rank-0.log"
_PR_SET_PDEATHSIG = 1
#: Seconds between looks at what others have left, and between signs of life.
_POLL, _BEAT = 1.0, 5.0
#: Seconds in which the rank that really failed may say so, before the loss of it is reported.
_LOST_PEER = 5.0


def try_folder(folder: Path, number: int) -> Path:
    """Return the folder of a start of the job, counted from 0."""
    return folder / f"try-{number}"


def log_of(folder: Path, job_id: str, rank: int) -> Path:
    """Return the file with a rank's stdout and stderr; rank 0's has srun's words too."""
    return folder / f"{job_id}_{rank}_log.out"


class Task:
    """What submitit calls on every rank. It can be started again: `function` resumes by itself."""

    def __init__(
        self,
        function: Callable[..., Any],
        kwargs: dict[str, Any],
        folder: Path,
        *,
        local: bool,
        requeues: int = 0,
        patience: float = 0.0,
    ) -> None:
        self.function = function
        self.kwargs = kwargs
        self.folder = folder
        self.local = local
        self.requeues = requeues
        self.patience = patience

    def __call__(self) -> None:
        self.rank = self._take_place()
        self.number = 0 if self.local else int(os.environ.get("SLURM_RESTART_COUNT", "0"))
        self.files = try_folder(self.folder, self.number)
        if not self._is_wanted():
            print("another job has taken this one's place; nothing to do", file=sys.stderr)
            os._exit(1)
        self.files.mkdir(exist_ok=True)
        write_json(
            self.files / f"rank-{self.rank}.json",
            {"pid": os.getpid(), "created": start_of(os.getpid()), "host": socket.gethostname(),
             "node": os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
             "start": time.time(), "log_size": self._log_size()},
        )  # fmt: skip
        stage = self.function.__module__.removeprefix("mlcd.").split(".")[0]
        setup_logging(self.folder / RANK_LOG if self.rank == 0 else None, stage)
        if self.number > self.requeues:
            self._fail({"kind": "requeues"})
        if not self.local:
            notice.listen(self._requeue, self.patience)
        self.usage = Usage(self.files / f"rank-{self.rank}.usage.json")
        threading.Thread(target=self._mind, daemon=True).start()
        try:
            result = self.function(**self.kwargs)
        except UserError as error:
            self._fail({"kind": "user", "message": str(error)})
        except Exception as error:
            traceback.print_exc()
            message = f"{type(error).__name__}: {error}".splitlines()[0]
            self._fail({"kind": "lost" if _lost_peer(error) else "error", "message": message})
        self.usage.update()
        write_json(self.files / f"rank-{self.rank}.done", {"result": result})
        if not self.local:
            notice.over()

    def _log_size(self) -> int:
        """Return the bytes that earlier starts of this job have left in rank 0's log."""
        with contextlib.suppress(OSError):
            return log_of(self.folder, os.environ.get("SLURM_JOB_ID", ""), 0).stat().st_size
        return 0

    def _take_place(self) -> int:
        """Export this rank's place by submitit's helper and return the rank."""
        import submitit

        place = submitit.helpers.TorchDistributedEnvironment()
        place.export(set_cuda_visible_devices=False, overwrite=True)
        if not self.local:
            os.environ["MASTER_PORT"] = str(meeting_port())
        if self.local:
            # The machine's own name may not resolve, or to an address that nothing listens on.
            os.environ["MASTER_ADDR"] = "127.0.0.1"
            os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
            parent = os.getppid()
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            if os.getppid() != parent:  # it died before the line above
                os._exit(1)
        return place.rank

    def _is_wanted(self) -> bool:
        """False if a driver has submitted another job meanwhile, or Slurm started this one again.

        A job that was thought lost (its node did not answer) may still run somewhere.
        """
        with contextlib.suppress(OSError, ValueError, KeyError):
            record = json.loads((self.folder.parent / RECORD).read_text())
            return (
                Path(record["folder"]).name == self.folder.name
                and not try_folder(self.folder, self.number + 1).exists()
            )
        return self.folder.exists()

    def _requeue(self) -> None:
        """Put this job back into the queue; Slurm then ends all ranks. Rank 0 does."""
        if self.rank != 0:
            return
        if self.number >= self.requeues:
            self._fail({"kind": "requeues"})
        LOGGER.info("told to stop: the job goes back into the queue")
        command = ("scontrol", "requeue", os.environ["SLURM_JOB_ID"])
        # A controller that is away comes back, or the time limit ends this process.
        while (answer := slurm.call(*command, timeout=120)) is None or answer.returncode != 0:
            time.sleep(2)

    def _fail(self, failure: dict[str, Any]) -> None:
        """Record the failure, if it is the gang's first, and end this process at once.

        Without the usual clean-up of Python: destroying process groups whose peers are gone may
        wait for them for half an hour.
        """
        if failure["kind"] == "lost":
            end = time.monotonic() + _LOST_PEER
            while time.monotonic() < end and not (self.files / FAILED).exists():
                time.sleep(0.1)
        temporary = self.files / f".{FAILED}.{self.rank}"
        temporary.write_text(json.dumps({"rank": self.rank, **failure}))
        with contextlib.suppress(FileExistsError):
            os.link(temporary, self.files / FAILED)
        sys.stdout.flush()
        sys.stderr.flush()
        self._leave()

    def _mind(self) -> None:
        """Show life and use of memory; end this process when another rank has failed."""
        last = -_BEAT
        while not (self.files / FAILED).exists():
            if time.monotonic() - last >= _BEAT:
                last = time.monotonic()
                with contextlib.suppress(OSError, psutil.Error):
                    self.usage.update()
                if not self._is_wanted():
                    break
            time.sleep(_POLL)
        self._leave()

    def _leave(self) -> None:
        """End this process, saying so: a rank that is gone without a word was killed."""
        with contextlib.suppress(OSError):
            (self.files / f"rank-{self.rank}.left").touch()
        os._exit(1)


def _lost_peer(error: Exception) -> bool:
    """True if the error says no more than that another rank is gone."""
    text = f"{type(error).__name__}: {error}"
    words = r"^Dist(Backend|Network|Store)Error|(closed|reset) by peer|Broken pipe|NCCL error"
    return re.search(words, text) is not None


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


def meeting_port() -> int:
    """Return the port at which the ranks of this start of the Slurm job meet.

    Equal on all ranks. Below 32768, where systems begin to give ports to outgoing connections:
    submitit's own choice may be one of those, and then rank 0 cannot listen.
    """
    start = f"{os.environ['SLURM_JOB_ID']}.{os.environ.get('SLURM_RESTART_COUNT', '0')}"
    return 20_000 + zlib.crc32(start.encode()) % 12_000


def free_port() -> int:
    """Return a port of the loopback interface that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
