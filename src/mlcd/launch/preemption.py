"""Warning to a rank that its job will be stopped: at the time limit, or preempted by another job.

    if any rank's stop_asked():        # at the end of a step; ranks agree by a collective
        save; barrier
        saved()                        # does not return: the job is requeued or ended

Work that never calls :func:`stop_asked` is requeued at once and resumes from its newest periodic
checkpoint.
"""

from __future__ import annotations

import os
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

#: Slurm sends the first at the time limit, and both (by its configuration) at preemption.
STOP_SIGNALS = (signal.SIGUSR2, signal.SIGTERM)
#: Seconds that a rank waits to be ended after it has saved.
_UNTIL_ENDED = 1200.0

#: Python's own start-up takes seconds on a network disk: a warning before :func:`listen` would end
#: the process by its signal. Blocked, it waits until then.
_BLOCK = (
    "import os, signal, sys; signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2]); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)

_asked = threading.Event()
_saved = threading.Event()
_heeded = threading.Event()


def python() -> str:
    """Return the words of a shell that start this Python so that no early warning is lost."""
    # Without site: bare Python is there in some milliseconds.
    return shlex.join([sys.executable, "-I", "-S", "-c", _BLOCK])


def stop_asked() -> bool:
    """True once this rank's job has been told to stop: save then, and call :func:`saved`."""
    _heeded.set()
    return _asked.is_set()


def may_leave() -> bool:
    """Ask the work to stop; return True once it has saved, or if it never asks for warnings."""
    _asked.set()
    return _saved.is_set() or not _heeded.is_set()


def saved() -> NoReturn:
    """Say that the state is on disk, and wait for the end of this process."""
    _saved.set()
    time.sleep(_UNTIL_ENDED)
    os._exit(1)


def listen(requeue: Callable[[], None], grace: float) -> None:
    """Heed warnings from now on. Call from the main thread.

    At SIGUSR2 `requeue` is called, in another thread: at once, or when :func:`saved` was called if
    the work heeds warnings, `grace` seconds later at the latest. SIGTERM asks to save alone: what
    follows is Slurm's to say, and at scancel the job must not come back.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def heed() -> None:
        while number := os.read(reader, 1):
            if number[0] not in STOP_SIGNALS:
                continue
            _asked.set()
            if number[0] == signal.SIGUSR2:
                if _heeded.is_set():
                    _saved.wait(grace)
                requeue()

    # The main thread may be deep in a collective, where no Python handler runs; the number of the
    # signal is written to the pipe even then.
    for number in STOP_SIGNALS:
        signal.signal(number, lambda *_: None)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR2])
    os.register_at_fork(after_in_child=_forget)
    threading.Thread(target=heed, daemon=True).start()


def over() -> None:
    """The work is done: a warning on the way out must not end this process by its signal.

    Python gives signals back their default action while it shuts down, but for ignored ones.
    """
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)


def _forget() -> None:
    """In a forked helper: only the rank itself heeds warnings."""
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
