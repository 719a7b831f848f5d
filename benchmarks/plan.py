"""`mlcd cluster --plan` beside the run that it is about, in turn, at several sizes.

    python benchmarks/plan.py --repeats 3

Plan and run are processes of their own with one thread, one right after the other. A run's time
leaves out the start of Python and the imports. Prints CPU and wall seconds, medians, and the run's
over the plan's.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import planted

SOURCE = Path(__file__).resolve().parents[1] / "src"
sys.path.insert(0, str(SOURCE))
TWO_LEVEL = ["--mode", "two_level", "--iterations", 4, "--refinements", 2]
#: Name: rows, dimensions, options of `mlcd cluster`. The plan's sample has all centers in the first
#: of each mode, fewer in the second.
SIZES = {
    "exact, 100,000 × 256, K = 2,048": (100_000, 256, ["--k", 2048, "--iterations", 8]),
    "exact, 100,000 × 256, K = 8,192": (100_000, 256, ["--k", 8192, "--iterations", 4]),
    "two_level, 100,000 × 64, K = 16,384": (100_000, 64, ["--k", 16384, *TWO_LEVEL]),
    "two_level, 400,000 × 64, K = 65,536": (400_000, 64, ["--k", 65536, *TWO_LEVEL]),
}  # fmt: skip
_TIMED = """
import sys, time
from mlcd import cli
from mlcd.commands.plan import cluster
from mlcd.stages.cluster import kmeans
from mlcd.neighbors import two_level
start = time.process_time(), time.perf_counter()
code = cli.main(sys.argv[1:])
print("took", time.process_time() - start[0], time.perf_counter() - start[1])
raise SystemExit(code)
"""


def run(*words: object) -> tuple[str, float, float]:
    """Run `mlcd words…` in a process of its own; return what it prints, CPU and wall seconds."""
    one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(SOURCE)}
    done = subprocess.run(
        [sys.executable, "-c", _TIMED, *map(str, words)],
        env={**os.environ, **one}, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True,
    )  # fmt: skip
    cpu, wall = map(float, done.stdout.split("took")[-1].split())
    return done.stdout, cpu, wall


def planned(text: str) -> tuple[float, float]:
    """Return the expected CPU and wall seconds that a plan prints."""
    line = next(line for line in text.splitlines() if line.startswith("expected time"))
    wall, unit = line.split()[2:4]
    cpu = line.split("(")[1].split()[0].replace(",", "")
    return float(cpu), float(wall) * {"s": 1, "min": 60, "h": 3600}[unit]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=3)
    arguments = parser.parse_args()
    print("| | plan CPU s | run CPU s | run / plan | plan wall s | run wall s | run / plan |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, (n, d, options) in SIZES.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "e.h5"
            planted.write(path, n, d, wide=1000, narrow=n // 8)
            words = ["cluster", "--embeddings", path, "--threads", 1, *options]
            pairs = []
            for repeat in range(arguments.repeats):
                expected = planned(run(*words, "--plan")[0])
                _, *taken = run(*words, "--output", Path(folder) / f"{repeat}.h5")
                pairs.append((*expected, *taken))
            cpu, wall, run_cpu, run_wall = (statistics.median(x) for x in zip(*pairs, strict=True))
            print(
                f"| {name} | {cpu:.1f} | {run_cpu:.1f} | {run_cpu / cpu:.2f} | "
                f"{wall:.1f} | {run_wall:.1f} | {run_wall / wall:.2f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
