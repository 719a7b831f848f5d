"""Processes of this machine and of others: named so that a later one is never taken for them."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path
from typing import Any

from mlcd.utils.errors import UserError

#: Helper processes that may be started on any machine, and per core.
_LEAST_WORKERS, _WORKERS_PER_CORE = 16, 4
#: What usually sends a signal that ends a process.
_CAUSES = {
    "SIGKILL": "out of memory?",
    "SIGBUS": "is /dev/shm or a disk full, or was a file cut short while it was read?",
    "SIGSEGV": "a library crashed: reinstall it, or look at dmesg",
    "SIGABRT": "a library gave up: see its words above",
    "SIGILL": "a library was built for another processor: reinstall it",
    "SIGXFSZ": "a file grew too large: raise ulimit -f",
    "SIGXCPU": "too much processor time: raise ulimit -t",
}


#: Signals that a process brings upon itself.
CRASHES = frozenset({"SIGSEGV", "SIGBUS", "SIGABRT", "SIGILL", "SIGFPE", "SIGSYS", "SIGXFSZ"})


def check_workers(count: int, option: str = "--workers") -> None:
    """Raise :class:`UserError` for more helper processes than can be meant on this machine.

    Each takes some 100 MB; more than a few for each core only take turns.
    """
    cores = os.cpu_count() or 1
    most = max(_LEAST_WORKERS, _WORKERS_PER_CORE * cores)
    if count > most:
        raise UserError(
            f"{option}: {count} processes on {cores} cores; at most {most} are started, and more "
            f"than {cores} are rarely faster"
        )


def cause_of(name: str) -> str:
    """Return ' (what to look at)' for the name of a signal that ended a process, or ''."""
    return f" ({_CAUSES[name]})" if name in _CAUSES else ""


def ending(status: int) -> str:
    """Return words for the exit status of a child: its number, or the signal that ended it."""
    if status >= 0:
        return f"exit status {status}"
    name = signal_name(-status)
    return f"{name}{cause_of(name)}"


def signal_name(number: int) -> str:
    """Return SIGSEGV and the like; real-time signals have no name here."""
    return signal.Signals(number).name if number in list(signal.Signals) else f"signal {number}"


def machine() -> str:
    """Return a name of this running system within which process ids are unique."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return socket.gethostname()


def this_process() -> dict[str, Any]:
    """Return what others need to tell whether this process still lives."""
    return {
        "host": socket.gethostname(),
        "machine": machine(),
        "pid": os.getpid(),
        "created": start_of(os.getpid()),
        "job": os.environ.get("SLURM_JOB_ID"),
        "restarts": os.environ.get("SLURM_RESTART_COUNT", "0"),
    }


def start_of(pid: int) -> int | None:
    """Return when a process began, in ticks since the boot; None if there is none, or a zombie.

    Unlike its time of creation this does not change when the machine's clock is set.
    """
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    # From its state, the third field, on: the second, its name, may hold anything.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


def process_alive(pid: int, created: int | None) -> bool:
    """True if the process of this id that began at `created` (:func:`start_of`) still runs here."""
    return created is not None and start_of(pid) == created
