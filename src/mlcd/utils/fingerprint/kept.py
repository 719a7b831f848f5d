"""Answers about the code of the package, kept from one process to the next in the user's cache.

    $XDG_CACHE_HOME/mlcd/code/{SHA-256 of the package}/{stage}.json      [~/.cache/mlcd/code/…]

The name of the folder is a hash of every byte of the package and of the Python that parses it, so
an answer is never out of date. A file that is damaged or was edited is not believed: it holds the
hash of what it says. Where nothing can be kept, each process computes its answers.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

#: States of the package whose answers are kept, those asked last.
_STATES = 20


def answer(root: Path, stage: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return what is kept about `stage` of the package in the folder `root`, else `compute()`."""
    path: Path | None = None
    with contextlib.suppress(OSError, RuntimeError):  # RuntimeError: nobody knows the home
        path = folder() / _digest(root) / f"{stage}.json"
        if (found := _read(path, stage)) is not None:
            return found
    value = compute()
    if path is not None:
        # A full disk or a folder that cannot be written to: computed again next time.
        with contextlib.suppress(OSError):
            _keep(path, value)
    return value


def folder() -> Path:
    """Return where answers are kept. Raises RuntimeError without a home."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # As the specification says, a path that is not absolute does not count.
    home = Path(base) if base.startswith("/") else Path.home() / ".cache"
    return home / "mlcd" / "code"


@functools.cache
def _digest(root: Path) -> str:
    """Return a hash of all files of the package and of the Python that parses them."""
    digest = hashlib.sha256(sys.version.encode())
    for path in sorted(root.rglob("*")):
        if "__pycache__" not in path.parts and path.is_file():
            content = path.read_bytes()
            digest.update(f"\n{path.relative_to(root)}\n{len(content)}\n".encode() + content)
    return digest.hexdigest()


def _read(path: Path, stage: str) -> dict[str, Any] | None:
    try:
        value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        checksum = value.pop("checksum")
        return value if checksum == _checksum(value) and value["stage"] == stage else None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None


def _checksum(value: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _keep(path: Path, value: dict[str, Any]) -> None:
    if not path.parent.is_dir():
        path.parent.mkdir(parents=True)
        _forget(path.parents[1])
    temporary = path.with_name(f".{path.name}.{os.uname().nodename}.{os.getpid()}")
    try:
        text = json.dumps({**value, "checksum": _checksum(value)})
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def _forget(states: Path) -> None:
    """Remove all but the newest folders."""
    found = sorted(states.iterdir(), key=lambda path: path.stat().st_mtime)
    for path in found[:-_STATES]:
        shutil.rmtree(path, ignore_errors=True)
