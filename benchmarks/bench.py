"""All rows of speed against peers, each with its goal: `make bench`.

    python benchmarks/bench.py [--only labels negatives] [--output bench.md]
    python benchmarks/bench.py --into docs/results/peers.md      print the page's table anew

Runs the benchmarks one after the other, each as a program of its own, and prints one table: our
median, least and greatest figure, those of the best peer of the same run, their ratio, the goal.
Names the machine first: figures of one say little about another. A benchmark that fails is said to
have failed, and the rest continues.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

import goals
import machine

HERE = Path(__file__).resolve().parent
#: scikit-learn and faiss.SuperKmeans take several times as long as these two.
_CLOSE = ["--peers", "faiss.Kmeans", "superkmeans (PyPI)"]
#: Name → script and its options: sizes that take minutes on two cores.
BENCHMARKS: dict[str, list[str]] = {
    "clusters": ["cluster.py", *_CLOSE],
    "clusters-small": ["cluster.py", "--rows", "20000", "--k", "1024", "--dim", "512", *_CLOSE],
    "clusters-crops": ["cluster.py", "--crops", "20000", *_CLOSE],
    "labels": ["label.py", "--rows", "8192", "--probes", "--repeats", "3"],
    "embed": ["embed.py", "--images", "640", "--repeats", "3"],
    "embed-efficientnet": [
        "embed.py",
        "--model",
        "efficientnet_lite0",
        "--images",
        "256",
        "--repeats",
        "3",
    ],
    "download": ["download_chunk.py", "--images", "3000", "--kinds", "photographs"],
    "crops": ["input.py", "crops", "--images", "128", "--repeats", "3"],
    "training-input": ["input.py", "training", "--images", "512", "--repeats", "3"],
    "probe": ["probe_search.py", "--repeats", "3"],
    "loss": ["loss.py", "--repeats", "3"],
    "negatives": ["negatives.py"],
    "optimizer": ["optimizer.py"],
    "checkpoint": ["checkpoint.py"],
    "planning": ["plan_scale.py", "laion-times-ten", "--repeats", "1", "--plan-only"],
}
_ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
#: In a page, what surrounds the table.
_BEGIN, _END = "<!-- printed by make bench -->", "<!-- end -->"
_HEADER = ["row", "unit", "mlcd", "best peer", "its figure", "ratio", "goal", ""]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=sorted(BENCHMARKS), metavar="NAME",
                        help=f"of {', '.join(sorted(BENCHMARKS))} [all]")  # fmt: skip
    parser.add_argument("--output", type=Path, help="also write the table to this file")
    parser.add_argument("--into", type=Path, metavar="PAGE",
                        help="write the machine and the table into this page")  # fmt: skip
    arguments = parser.parse_args()
    if arguments.into and (arguments.only or _parts(arguments.into) is None):
        parser.error(f"--into: all rows go into a page with {_BEGIN} and {_END}")
    lines = machine.description().splitlines()
    print("\n".join(lines), flush=True)
    rows, failed, began = [], [], time.monotonic()
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
    lines.append(f"load at the end: {_load()}; {(time.monotonic() - began) / 60:.0f} minutes")
    text = "\n".join(["```text", *lines, "```", "", *table, "", *failed]).rstrip()
    print(f"\n{text}")
    if arguments.output:
        arguments.output.write_text(f"{text}\n", encoding="utf-8")
    if arguments.into and (around := _parts(arguments.into)) and not failed:
        page = f"\n\n{text}\n\n".join(around)
        arguments.into.write_text(page, encoding="utf-8")
    return 1 if failed else 0


def run(command: list[str]) -> tuple[list[str], int]:
    """Run a benchmark, show what it prints, and return its rows and exit status."""
    # One thread for everybody: idle threads of a library that spin would count as its work.
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent / "src"), **_ONE_THREAD}
    # Installed packages have bytecode. Without this ours alone would be compiled at each start.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
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


def _parts(page: Path) -> tuple[str, str] | None:
    """Return what stands before and behind the table of a page, with the marks, or None."""
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(_BEGIN)
    _, end, behind = rest.partition(_END)
    return (before + begin, end + behind) if begin and end else None


def _load() -> str:
    return " ".join(f"{value:.1f}" for value in os.getloadavg())


if __name__ == "__main__":
    sys.exit(main())
