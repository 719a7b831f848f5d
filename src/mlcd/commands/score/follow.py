"""The word of the training that a scorer works beside; nothing heavy is imported here."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading

#: What the training says when it has ended well.
END = b"end\n"


class Told:
    """Whether standard input has said `end`. The process ends at once where it closes before.

    So it never outlives the training, however that ends: a pipe of a killed process is closed.
    """

    def __init__(self) -> None:
        self._end = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        said = b""
        while not said.endswith(END):
            new = os.read(sys.stdin.fileno(), len(END))
            if not new:
                os._exit(0)
            said += new
        self._end.set()
        # The training may still be killed, or tired of waiting.
        while os.read(sys.stdin.fileno(), len(END)):
            pass
        os._exit(0)

    def wait(self, seconds: float) -> bool:
        """Wait at most so long; return whether the training has ended."""
        return self._end.wait(seconds)


def lower_priority(by: int) -> None:
    """Leave the processor to others, such as the training."""
    with contextlib.suppress(OSError):
        os.nice(by)


def leave_warnings() -> None:
    """Leave the warnings of Slurm to the ranks of the training."""
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
