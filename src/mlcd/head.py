"""The head: the Snakemake process that started this one, or that works in a directory."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from mlcd.config import SECTIONS
from mlcd.files import sha256_json, write_json
from mlcd.lease import describe, is_gone, machine, process_alive, start_of, this_process
from mlcd.sources import code_hash, file_identity

_RECORD = Path(".snakemake") / "mlcd-head.json"


class Head:
    """The nearest ancestor of this process that runs Snakemake."""

    def __init__(self, pid: int | None) -> None:
        self._pid = pid
        self._created = None if pid is None else start_of(pid)
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
                return cls(parent.pid)
        return cls(None)

    def is_gone(self) -> bool:
        """True if it was killed. Raises KeyboardInterrupt if it lives and has let this process go.

        It kills the shell in between when it is told to stop at once.
        """
        if self._pid is None:
            return False
        if not process_alive(self._pid, self._created):
            return True
        if os.getppid() != self._parent:
            raise KeyboardInterrupt
        return False


def announce(folder: Path, config: dict[str, Any], files: Mapping[str, str]) -> None:
    """Record this process as the Snakemake that works in `folder`; done when a run starts.

    Its `config` and the identities of the `files` that rules read beside their inputs (path → hash,
    :func:`mlcd.sources.file_identity`) tell later what the jobs that outlive it worked with.
    """
    write_json(
        folder / _RECORD,
        {**this_process(), "by_run": "MLCD_RUN" in os.environ, "config": config,
         "code": _code(), "files": {str(Path(name).resolve()): files[name] for name in files}},
    )  # fmt: skip


def sources_unchanged(head: dict[str, Any]) -> bool:
    """True if the code and the files that the Snakemake `head` announced are still the same."""
    try:
        return head["code"] == _code() and all(
            file_identity(name) == identity for name, identity in head["files"].items()
        )
    except (KeyError, OSError):
        return False


def _code() -> str:
    return sha256_json([code_hash(stage) for stage in SECTIONS])


def announced(folder: Path) -> dict[str, Any] | None:
    """Return what the last Snakemake in `folder` has recorded, or None."""
    try:
        return json.loads((folder / _RECORD).read_text())
    except (OSError, ValueError):
        return None


def announced_at(folder: Path) -> int:
    """Return when the last Snakemake in `folder` began to work, in ns; 0 if it has not said so."""
    try:
        return (folder / _RECORD).stat().st_mtime_ns
    except OSError:
        return 0


def locked(folder: Path) -> bool:
    """True if a Snakemake holds the lock of `folder`, or has left it."""
    locks = folder / ".snakemake" / "locks"
    return locks.is_dir() and any(locks.iterdir())


def stale_lock(folder: Path) -> str:
    """Return one line for the user if a killed Snakemake has left its lock in `folder`, else ""."""
    head = announced(folder) if locked(folder) else None
    if head is None or head.get("machine") != machine() or not is_gone(head, 0):
        return ""
    return (
        f"The Snakemake that locked this directory is gone ({describe(head)}). "
        "To go on, use `mlcd run` in place of `snakemake`, with the same options."
    )
