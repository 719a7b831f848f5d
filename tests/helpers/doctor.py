"""`mlcd doctor` in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

from helpers.paths import ROOT


def doctor(*options: str, path: str | None = None, **environment: str):
    return subprocess.run(
        [sys.executable, "-m", "mlcd", "doctor", *options],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
        env={**os.environ, "PATH": path or os.environ["PATH"],
             "PYTHONPATH": str(ROOT / "src"), **environment},
    )  # fmt: skip


def row(told: str, name: str) -> str:
    """Return a check's lines, the fix included."""
    lines = told.splitlines()
    (first,) = [i for i, line in enumerate(lines) if line[6:].startswith(f"{name} ")]
    last = first + 1
    while last < len(lines) and lines[last].startswith(" "):
        last += 1
    return " ".join(" ".join(lines[first:last]).split())
