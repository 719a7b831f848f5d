"""What a driver sets up around a gang: the ranks' environment, their log, its own interruption."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlcd.launch.options import Resources
from mlcd.utils.logging import LOGGER

#: Settings of torch's allocator on GPUs, by its newer and older name: the user's are kept.
_ALLOCATOR = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")


class Terminated(KeyboardInterrupt):
    """SIGTERM: this machine shuts down, say. A job on other machines need not end for that."""


class Tail:
    """Copies what rank 0 appends to its log to where this process logs (it has its own times)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = path.stat().st_size if path.exists() else 0

    def show(self) -> None:
        """Copy what is new."""
        if self._path.exists():
            with self._path.open("rb") as handle:
                handle.seek(self._position)
                text = handle.read()
            # Whole lines only, so that a character is never cut in two.
            text = text[: text.rfind(b"\n") + 1]
            self._position += len(text)
            for handler in LOGGER.handlers:
                if isinstance(handler, logging.StreamHandler):
                    handler.stream.write(text.decode("utf-8", "replace"))
                    handler.flush()


@contextmanager
def rank_environment(resources: Resources, extra: dict[str, str]) -> Iterator[None]:
    """Set the variables that ranks inherit, `extra` among them; restore the driver's afterwards."""
    # A gang may be launched from inside another job; its place in that job is not ours.
    foreign = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    kept = {"SLURM_CONF"}
    for key in ("partition", "account"):
        # A default of the user's or the site's. It would win over what is asked for.
        if not getattr(resources, key) and key not in resources.options:
            kept.add(f"SBATCH_{key.upper()}")
    before = dict(os.environ)
    for name in before:
        inherited = name.startswith(("SLURM_", "SBATCH_", "SRUN_", "SUBMITIT_"))
        if name in foreign or (inherited and name not in kept):
            os.environ.pop(name)
    os.environ["OMP_NUM_THREADS"] = str(resources.threads)
    if resources.gpus and not any(name in os.environ for name in _ALLOCATOR):
        # Memory that is free in pieces serves a larger request: a second, larger image size.
        os.environ[_ALLOCATOR[0]] = "expandable_segments:True"
    # Whatever this process can import, its ranks can, however it was started.
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    os.environ.update(extra)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def stderr_to(path: Path) -> Iterator[None]:
    """Send what submitit's controller process says to a file: an interrupt is a traceback to it."""
    sys.stderr.flush()
    with path.open("wb") as handle:
        before = os.dup(2)
        os.dup2(handle.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


@contextmanager
def interruptible() -> Iterator[None]:
    """Turn SIGTERM into an exception, as SIGINT is, so that it can be answered on the way out."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: Any) -> None:
        raise Terminated

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
