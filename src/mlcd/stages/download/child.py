"""A command in a process group of its own, ended whole: at a deadline, an error, or our own end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO

#: How the last line of a command's output begins that says in one line why it ended.
FAILED = "mlcd: "
_POLL = 0.1


def supervise(
    command: Sequence[str],
    *,
    log: Path,
    until: float,
    environment: dict[str, str],
    keep_open: Sequence[int] = (),
    tick: Callable[[], None] = lambda: None,
) -> int | None:
    """Run `command` with its output appended to `log`; return its exit status, None if too late.

    The command leads a new session. Once it ends, or the monotonic clock passes `until`, or an
    exception comes through (Ctrl-C), every process of its group is killed: workers would outlive
    their leader. Its stdin is a pipe that nothing is written to: it closes when this process
    dies, however it dies, which the command may watch. `keep_open` are file descriptors it
    inherits; `tick` is called about ten times per second.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
            pass_fds=keep_open,
            start_new_session=True,
        )
        try:
            while True:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return process.wait(timeout=_POLL)
                tick()
                if time.monotonic() >= until:
                    return None
        finally:
            _kill_group(process)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    # The group lives as long as any member, so its number cannot have passed to another.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    if process.stdin:
        process.stdin.close()


def last_lines(log: Path, count: int) -> list[str]:
    """Return the last non-empty lines of a log, each cut to a readable length."""
    if not log.exists():
        return []
    with log.open("rb") as handle:
        handle.seek(max(0, log.stat().st_size - 65_536))
        text = handle.read().decode("utf-8", "replace")
    lines = [line.strip() for line in text.replace("\r", "\n").splitlines() if line.strip()]
    return [line[:1000] for line in lines[-count:]]


def lock(path: Path, wait: float) -> IO[str] | None:
    """Return a file that is locked against other runs, or None if one still holds it after `wait`.

    The lock goes with the open file, also through children that inherit it: it is free only when
    the whole tree is gone. On file systems without locks the file is returned unlocked.
    """
    import fcntl

    handle = path.open("a")
    until = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except BlockingIOError:
            if time.monotonic() >= until:
                handle.close()
                return None
            time.sleep(_POLL)
        except OSError:
            return handle
