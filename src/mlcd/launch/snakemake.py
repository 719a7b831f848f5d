"""The Snakemake process that started this one, or that works in a directory."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import psutil

from mlcd.config import SECTIONS, Train
from mlcd.launch.lease import describe, is_gone, is_process
from mlcd.utils import disk
from mlcd.utils.errors import UserError
from mlcd.utils.files import sha256_json, write_json
from mlcd.utils.fingerprint import code_hash, file_identity
from mlcd.utils.processes import machine, process_alive, start_of, this_process

_RECORD = Path(".snakemake") / "mlcd-process.json"


class SnakemakeProcess:
    """The nearest ancestor of this process that runs Snakemake."""

    def __init__(self, pid: int | None) -> None:
        self._pid = pid
        self._created = None if pid is None else start_of(pid)
        self._parent = os.getppid()

    @classmethod
    def of_this_process(cls) -> SnakemakeProcess:
        """Return that of this process; one that is never gone if no Snakemake started it."""
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


def put_own_programs_first() -> None:
    """Have the jobs of this process find the programs of its environment before all others.

    Not by Snakemake's shell.prefix: it is one for all rules, those of a workflow that imports
    mlcd's included.
    """
    programs, path = str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)
    if path.split(os.pathsep)[0] != programs:
        os.environ["PATH"] = os.pathsep.join([programs, path])


def stop(message: str) -> NoReturn:
    """End the Snakemake that reads its rules, with `message` and nothing else.

    An exception would be shown with a traceback of the rules, in which a user looks for a mistake
    that is none of theirs.
    """
    from snakemake.logging import logger

    logger.error(message)
    raise SystemExit(1)


def require_results(folder: str) -> None:
    """Stop if the folder of the results takes no file; done when a run starts."""
    try:
        disk.check_folder(folder)
    except UserError as error:
        stop(f"results: {error}")


def check_train(section: Train) -> None:
    """Stop if the encoder of `section` cannot be built, or its first weights do not fit.

    Asked of `mlcd train --check` in a process of its own: this one imports nothing heavy.
    """
    initial = section.initial or "null"
    command = [sys.executable, "-m", "mlcd", "train", "--check", "--config"]
    command += [section.for_encoder(), f"--initial={initial}"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True)
    for line in done.stderr.splitlines():
        if done.returncode == 0:
            print(line, file=sys.stderr)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["mlcd train --check ended without a word"]
        stop(lines[-1].partition(" ERROR ")[2] or lines[-1])


def check_reader(rules: Iterable[str]) -> None:
    """Stop if one of the `rules` that are to run reads text, and nothing is installed that does.

    Now, and not after all images have been fetched and embedded.
    """
    missing = [name for name in ("rapidocr", "onnxruntime") if not importlib.util.find_spec(name)]
    # A workflow that imports ours may have renamed the rule.
    if missing and any(name.endswith("ocr_text") for name in rules):
        stop(f"ocr.enabled: {missing[0]} is not installed; pip install 'mlcd[ocr]'")


def check_results(folder: str) -> None:
    """Stop a dry run whose results may not be written, without writing anything.

    What only looks at old results may do so on a disk that may only be read.
    """
    if any(re.fullmatch(r"--dry-?run|-[a-zA-Z]*n[a-zA-Z]*", word) for word in sys.argv) and (
        refused := disk.may_write(folder)
    ):
        stop(f"results: {refused}")


def announce(folder: Path, config: dict[str, Any], files: Mapping[str, str]) -> None:
    """Record this process as the Snakemake that works in `folder`; done when a run starts.

    Its `config` and the identities of the `files` that rules read beside their inputs (path → hash,
    :func:`mlcd.utils.fingerprint.file_identity`) tell later what the jobs that outlive it worked
    with.
    """
    write_json(
        folder / _RECORD,
        {**this_process(), "by_run": "MLCD_RUN" in os.environ, "config": config,
         "code": _code(), "files": {str(Path(name).resolve()): files[name] for name in files}},
    )  # fmt: skip


def sources_unchanged(process: dict[str, Any]) -> bool:
    """True if the code and the files that the Snakemake `process` announced are still the same."""
    try:
        return process["code"] == _code() and all(
            file_identity(name) == identity for name, identity in process["files"].items()
        )
    except (AttributeError, KeyError, OSError, TypeError):
        return False


def _code() -> str:
    return sha256_json([code_hash(stage) for stage in SECTIONS])


def announced(folder: Path) -> dict[str, Any] | None:
    """Return what the last Snakemake in `folder` has recorded; None if nothing whole."""
    try:
        record = json.loads((folder / _RECORD).read_text())
    except (OSError, ValueError):
        return None
    return record if is_process(record) else None


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
    process = announced(folder) if locked(folder) else None
    if process is None or process.get("machine") != machine() or not is_gone(process, 0):
        return ""
    return (
        f"The Snakemake that locked this directory is gone ({describe(process)}). "
        "To resume, use `mlcd run` in place of `snakemake`, with the same options."
    )
