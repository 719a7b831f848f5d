"""All rows of speed against peers, each with its goal: `make bench`.

    python benchmarks/bench.py [--only labels sampler] [--output bench.md]

Runs the benchmarks one after the other, each as a program of its own, and prints one table: our
median, least and greatest figure, those of the best peer of the same run, their ratio, the goal.
Names the machine first: figures of one say little about another. A benchmark that fails is said to
have failed, and the rest continues.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import goals

HERE = Path(__file__).resolve().parent
#: Instruction sets that decide which kernels libraries choose.
_SETS = ("avx2", "fma", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "asimd", "sve")
_LIBRARIES = ("torch", "numpy", "faiss-cpu", "scikit-learn", "img2dataset", "webdataset", "pillow")
#: Name → script and its options: sizes that take minutes on two cores.
BENCHMARKS: dict[str, list[str]] = {
    "loss": ["loss.py", "--repeats", "3"],
    "negatives": ["negatives.py"],
    "optimizer": ["optimizer.py"],
    "checkpoint": ["checkpoint.py"],
    "planning": ["plan_scale.py", "laion-times-ten", "--repeats", "3", "--plan-only"],
}
_HEADER = ["row", "unit", "mlcd", "best peer", "its figure", "ratio", "goal", ""]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=sorted(BENCHMARKS), metavar="NAME",
                        help=f"of {', '.join(sorted(BENCHMARKS))} [all]")  # fmt: skip
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    arguments = parser.parse_args()
    lines = machine()
    print("\n".join(lines), flush=True)
    rows, failed = [], []
    for name in arguments.only or BENCHMARKS:
        print(f"\n== {name}: {' '.join(BENCHMARKS[name])}", flush=True)
        start = time.monotonic()
        found, status = run(
            [sys.executable, str(HERE / BENCHMARKS[name][0]), *BENCHMARKS[name][1:]]
        )
        print(f"== {time.monotonic() - start:.0f} s", flush=True)
        rows += found
        if status or not found:
            failed.append(f"{name}: ended with {status}, {len(found)} rows")
    table = [
        f"| {' | '.join(_HEADER)} |",
        f"|{'---|' * len(_HEADER)}",
        *(f"| {row} |" for row in rows),
    ]
    text = "\n".join([*lines, f"load at the end: {_load()}", "", *table, "", *failed]).rstrip()
    print(f"\n{text}")
    if arguments.output:
        arguments.output.write_text(f"{text}\n", encoding="utf-8")
    return 1 if failed else 0


def run(command: list[str]) -> tuple[list[str], int]:
    """Run a benchmark, show what it prints, and return its rows and exit status."""
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent / "src")}
    rows = []
    with subprocess.Popen(
        command, cwd=HERE.parent, env=environment, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            if line.startswith(goals.MARK):
                rows.append(line.removeprefix(goals.MARK).strip())
    return rows, process.returncode


def machine() -> list[str]:
    """Return lines that name processor, instruction sets, BLAS, versions and load."""
    text = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    model = re.search(r"^model name\s*: (.*)$", text, re.M)
    flags = set((re.search(r"^(?:flags|Features)\s*: (.*)$", text, re.M) or [""])[0].split())
    versions = [f"{name} {version}" for name in _LIBRARIES if (version := _version(name))]
    return [
        f"processor: {model[1] if model else platform.processor()}, {os.cpu_count()} cores, "
        f"{', '.join(name for name in _SETS if name in flags) or 'no known instruction set'}",
        f"BLAS: {', '.join(_blas()) or 'not told'}",
        f"Python {platform.python_version()}, {', '.join(versions)}",
        f"load at the start: {_load()}",
    ]


def _blas() -> list[str]:
    # Loaded first, so that threadpoolctl sees what they bring.
    import faiss  # noqa: F401
    import numpy  # noqa: F401
    import torch
    from threadpoolctl import threadpool_info

    keys = ("internal_api", "version", "architecture")
    found = {
        " ".join(str(info[key]) for key in keys if info.get(key))
        for info in threadpool_info()
        if info["user_api"] == "blas"
    }
    if torch.backends.mkl.is_available():
        found.add("MKL of torch")
    return sorted(found)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _load() -> str:
    return " ".join(f"{value:.1f}" for value in os.getloadavg())


if __name__ == "__main__":
    sys.exit(main())
