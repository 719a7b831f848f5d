"""Peak memory of a program of mlcd, and rows that do not fit in a small limit."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import h5py

from helpers.builders import unit_vectors
from mlcd import cli

_MEASURE = """
import pathlib, sys
from mlcd import cli
code = cli.main(sys.argv[1:])
# Not ru_maxrss, which begins at what the parent held when it started this process.
status = pathlib.Path("/proc/self/status").read_text()
print(int(status.split("VmHWM:")[1].split()[0]) * 1024)
raise SystemExit(code)
"""


def peak_memory(*words: object) -> int:
    """Run `mlcd words…` in a process of its own; return its largest resident memory in bytes."""
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, *map(str, words)],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])},
    )
    return int(done.stdout)


def many_rows(path: Path) -> Path:
    """Write 120 MB of float16 rows, 240 MB as float32: too much for 400 MiB beside a program."""
    vectors = unit_vectors(1000, 512)
    with h5py.File(path, "w") as file:
        rows = file.create_dataset("embedding", (120_000, 512), "f2", chunks=(1000, 512))
        for start in range(0, 120_000, 1000):
            rows[start : start + 1000] = vectors
    return path
