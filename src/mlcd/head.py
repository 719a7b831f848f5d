"""The head: the Snakemake process that started this one, if any."""

from __future__ import annotations

import os
from pathlib import Path

import psutil


class Head:
    """The nearest ancestor of this process that runs Snakemake."""

    def __init__(self, process: psutil.Process | None) -> None:
        self._process = process
        self._parent = os.getppid()

    @classmethod
    def of_this_process(cls) -> Head:
        """Return the head of this process; one that is never gone if no Snakemake started it."""
        for parent in psutil.Process().parents():
            try:
                words = parent.cmdline()
            except psutil.Error:
                continue
            if any(Path(word).name == "snakemake" for word in words[:4]):
                return cls(parent)
        return cls(None)

    def is_gone(self) -> bool:
        """True if it was killed. Raises KeyboardInterrupt if it lives and has let this process go.

        It kills the shell in between when it is told to stop at once.
        """
        if self._process is None:
            return False
        if not self._process.is_running() or self._process.status() == psutil.STATUS_ZOMBIE:
            return True
        if os.getppid() != self._parent:
            raise KeyboardInterrupt
        return False
