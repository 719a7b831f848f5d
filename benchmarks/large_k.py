"""Two-level k-means: its objective beside that of exact k-means, and a run at a large K.

    python benchmarks/large_k.py gap --rows 200000 --dim 256 --k 4096 16384
    python benchmarks/large_k.py large --rows 2000000 --dim 64 --k 262144

Rows lie in groups of groups (benchmarks/planted.py). Each run is a process of its own with one
thread. `gap` scores all centers alike: the mean cosine similarity of every fifth row to its nearest
of all K centers, found exactly. `large` streams from a file within --memory-limit.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import planted

SOURCE = Path(__file__).resolve().parents[1] / "src"
#: Contenders of `gap`: options of `mlcd cluster`.
CONTENDERS = {
    "exact": [],
    "two_level, no refinement": ["--mode", "two_level", "--refinements", 0],
    "two_level, 5 refinements of 4 groups": ["--mode", "two_level"],
    "two_level, 5 refinements of 16 groups": ["--mode", "two_level", "--probes", 16],
    "two_level, 2 refinements over all K": [
        "--mode", "two_level", "--refinements", 2, "--probes", 0,
    ],
}  # fmt: skip


def objective(path: Path, centers: np.ndarray, step: int) -> float:
    """Return the mean cosine of every `step`-th row to its nearest center, exact."""
    from mlcd.data.embeddings import Embeddings
    from mlcd.neighbors.exact import ExactSearch

    rows = planted.unit(Embeddings(path).read()[::step])
    search, total = ExactSearch(centers, threads=1), 0.0
    for start in range(0, len(rows), 8192):
        block = rows[start : start + 8192]
        total += search.similarities(block, search.nearest(block, 1)).sum()
    return total / len(rows)


def child(words: list[str], path: str, step: int) -> None:
    """Run `mlcd` once in this process and print what it took as a line of JSON."""
    from mlcd import cli
    from mlcd.data.centroids import Centroids

    start, began = time.process_time(), time.monotonic()
    if cli.main(words):
        raise SystemExit(1)
    measured = {
        "cpu": time.process_time() - start,
        "wall": time.monotonic() - began,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    found = Centroids(words[words.index("--output") + 1])
    measured |= {
        "stated": float(found.objective[-1]),
        "empty": int((found.sizes == 0).sum()),
        "largest": int(found.sizes.max()),
    }
    if step:
        measured["objective"] = objective(Path(path), found.array, step)
    print(json.dumps(measured))


def measure(path: Path, folder: Path, options: list[object], step: int) -> dict[str, float]:
    """Run `mlcd cluster` in a process of its own; return what :func:`child` prints."""
    words = ["cluster", "--embeddings", path, "--output", folder / "c.h5", "--threads", 1]
    program = "import large_k, sys; large_k.child(sys.argv[3:], sys.argv[1], int(sys.argv[2]))"
    command = [sys.executable, "-c", program, path, step, *words, *options]
    one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    here = os.pathsep.join([str(SOURCE), str(Path(__file__).parent)])
    done = subprocess.run(
        list(map(str, command)), env={**os.environ, **one, "PYTHONPATH": here}, check=True,
        stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


def gap(arguments: argparse.Namespace, path: Path, folder: Path) -> None:
    """Print a table of objectives and CPU seconds by contender for each K."""
    for k in arguments.k:
        print(f"\nK = {k:,}, {arguments.iterations} iterations\n")
        print("| | CPU s | exact objective | of exact | empty | largest |")
        print("|---|---:|---:|---:|---:|---:|")
        first = None
        for name, options in CONTENDERS.items():
            more = ["--k", k, "--iterations", arguments.iterations, *options]
            one = measure(path, folder, more, step=5)
            first = first or one["objective"]
            print(
                f"| {name} | {one['cpu']:.1f} | {one['objective']:.4f} | "
                f"{one['objective'] / first:.4f} | {one['empty']} | {one['largest']} |",
                flush=True,
            )


def large(arguments: argparse.Namespace, path: Path, folder: Path) -> None:
    """Print what one two-level run of the largest K takes."""
    for k in arguments.k:
        options = ["--mode", "two_level", "--k", k, "--iterations", arguments.iterations]
        options += ["--refinements", arguments.refinements, "--probes", arguments.probes]
        one = measure(path, folder, [*options, "--memory-limit", arguments.memory_limit], step=0)
        print(f"K = {k:,}: " + json.dumps(one), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("case", choices=["gap", "large"])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--k", type=int, nargs="+", default=[4096, 16384])
    parser.add_argument("--iterations", type=int, default=8)
    parser.add_argument("--refinements", type=int, default=3)
    parser.add_argument("--probes", type=int, default=4)
    parser.add_argument("--memory-limit", default="2GiB")
    arguments = parser.parse_args()
    sys.path.insert(0, str(SOURCE))
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = folder / "e.h5"
        narrow = arguments.rows // 8
        planted.write(path, arguments.rows, arguments.dim, wide=1000, narrow=narrow)
        print(f"{arguments.rows:,} rows, d = {arguments.dim}, {narrow:,} groups in 1,000")
        {"gap": gap, "large": large}[arguments.case](arguments, path, folder)


if __name__ == "__main__":
    main()
