"""The controller of a local gang: starts its ranks, and ends them all once one has ended badly.

    python -m mlcd.launch.controller FOLDER RANKS

It lives in a session of its own, so that neither Ctrl-C nor the end of a terminal reaches it, and
outlives a killed driver. It waits for every rank's process, whether or not the rank has left a word
yet, so that no rank waits for one that was killed in its first moment. Its ranks die with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

from mlcd.launch.gang_files import FAILED, KILLED, free_port, log_of, report_failure, try_folder
from mlcd.utils.processes import signal_name

_PR_SET_PDEATHSIG = 1
_POLL = 0.05
#: Seconds in which the other ranks may end by themselves after one has ended badly.
_GRACE = 10.0


def main(folder: Path, ranks: int) -> int:
    """Run the `ranks` of the gang in `folder` to their end; return 0 if all ended well."""
    files = try_folder(folder, 0)
    files.mkdir(exist_ok=True)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    port = free_port()
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for rank in range(ranks):
            processes.append(_start(folder, rank, ranks, port))
        _wait(processes, files)
    finally:
        _kill(processes)
    return 0 if all(process.wait() == 0 for process in processes) else 1


def _start(folder: Path, rank: int, ranks: int, port: int) -> subprocess.Popen[bytes]:
    parent = os.getpid()

    def prepare() -> None:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    place = {
        "RANK": str(rank), "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks), "LOCAL_WORLD_SIZE": str(ranks),
        # The machine's own name may not resolve, or to an address that nothing listens on.
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    with log_of(folder, str(parent), rank).open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "mlcd.launch.rank_local", str(folder)],
            env={"GLOO_SOCKET_IFNAME": "lo", **os.environ, **place},
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            # With its helpers in a group: they end together.
            process_group=0, preexec_fn=prepare,
        )  # fmt: skip


def _wait(processes: list[subprocess.Popen[bytes]], files: Path) -> None:
    """Return when all ranks have ended, or some seconds after one has ended badly."""
    seen: set[int] = set()
    deadline: float | None = None
    while len(seen) < len(processes) and (deadline is None or time.monotonic() < deadline):
        for rank, process in enumerate(processes):
            if rank in seen or (code := process.poll()) is None:
                continue
            seen.add(rank)
            if code == 0:
                continue
            deadline = deadline or time.monotonic() + _GRACE
            # Else it has said itself why.
            if not (files / f"rank-{rank}.left").exists():
                _report(files, rank, code)
        time.sleep(_POLL)


def _report(files: Path, rank: int, code: int) -> None:
    failure: dict[str, Any] = {"rank": rank, "kind": "status", "status": code}
    if code < 0:
        failure = {"rank": rank, "kind": "killed", "signal": signal_name(-code)}
        # The others may report the loss of it first.
        _leave(files, failure, KILLED)
    _leave(files, failure, FAILED)


def _leave(files: Path, failure: dict[str, Any], name: str) -> None:
    # On a full disk it cannot be left; the ranks must be ended all the same.
    with contextlib.suppress(OSError):
        report_failure(files, failure, name)


def _kill(processes: list[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def _end(number: int, frame: Any) -> NoReturn:
    raise SystemExit(1)


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2])))
