"""Peers of `make bench` in a folder of their own, beside the environment: nothing of ours changes.

    python benchmarks/peers.py [OPTIONS OF PIP]

Installs benchmarks/peers.txt into {environment}/peers, some 80 MB, once for each state of that
file. Where that cannot be, it says why and ends well: the benchmarks then leave these peers out,
and repeat the reason.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

LIST = Path(__file__).with_name("peers.txt")
#: Of the list, those that are measured.
NAMES = ("litdata", "mosaicml-streaming")
FOLDER = Path(sys.prefix) / "peers"
#: In the folder: the hash of the list that was installed, or why it could not be.
_DONE, _REASON = "installed", "reason"


def environment() -> dict[str, str]:
    """Return the environment of a program that uses these peers."""
    paths = [str(FOLDER), str(LIST.parent), str(LIST.parents[1] / "src")]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}


def missing() -> str:
    """Return why these peers cannot be used, or nothing."""
    if _read(_DONE) == _wanted():
        return ""
    return _read(_REASON) or "not installed (python benchmarks/peers.py)"


def _wanted() -> str:
    return hashlib.sha256(LIST.read_bytes() + sys.version.encode()).hexdigest()


def _read(name: str) -> str:
    path = FOLDER / name
    return path.read_text(encoding="utf-8").strip() if path.exists() else ""


def main() -> None:
    """Install them."""
    if not missing():
        return
    shutil.rmtree(FOLDER, ignore_errors=True)
    words = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    words += ["--no-deps", "--target", str(FOLDER), "--requirement", str(LIST), *sys.argv[1:]]
    done = subprocess.run(words, stderr=subprocess.PIPE, text=True)
    FOLDER.mkdir(exist_ok=True)
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")]
        reason = (errors or done.stderr.splitlines() or ["pip failed"])[-1]
        (FOLDER / _REASON).write_text(f"{reason}\n", encoding="utf-8")
        print(f"litdata and mosaicml-streaming are left out: {reason}", flush=True)
        return
    (FOLDER / _DONE).write_text(f"{_wanted()}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
