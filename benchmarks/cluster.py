"""CPU-seconds and objective of k-means: stage cluster beside its peers, with one thread each.

    python benchmarks/cluster.py
    python benchmarks/cluster.py --rows 200000 --dim 512 --k 4096 --iterations 5 --kinds planted
    python benchmarks/cluster.py --data crops.h5 --k 4096 --iterations 5
    python benchmarks/cluster.py --growth --peers

Rows of the kinds of benchmarks/kinds.py, or those of a file (benchmarks/crops.py makes real ones).
Every run is a process of its own with one thread, so that CPU-seconds compare the work alone; the
contenders take turns. The objective is exact for each: the mean cosine similarity of a row to its
nearest final center, in float64. Prints a table in Markdown for each kind: medians over the
repeats, least and greatest CPU-seconds in brackets, and the goal. `--growth` adds the exponents
with which CPU-seconds grow when rows, K or dimensions are doubled. Contenders that are not
installed are left out (pip install superkmeans).
"""

from __future__ import annotations

import argparse
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

SOURCE = Path(__file__).resolve().parents[1] / "src"
sys.path.insert(0, str(SOURCE))

import cluster_peers  # noqa: E402
import goals  # noqa: E402
import kinds  # noqa: E402
import machine  # noqa: E402

from mlcd.data.embeddings import Embeddings  # noqa: E402


def objective(path: Path, centers: np.ndarray) -> float:
    """Return the mean cosine similarity of a row to its nearest center, in float64."""
    from mlcd.neighbors.exact import ExactSearch
    from mlcd.neighbors.rows import Rows

    # Not every library leaves them of unit length.
    lengths = np.maximum(np.linalg.norm(centers, axis=1, keepdims=True), 1e-12)
    search, total = ExactSearch((centers / lengths).astype(np.float32), threads=1), 0.0
    rows = Rows([Embeddings(path)], 8192)
    for _, block in rows.blocks():
        total += search.similarities(block, search.nearest(block, 1)).sum()
    return total / rows.n


def child(arguments: argparse.Namespace) -> None:
    """One measured run in this process; prints a line of JSON."""
    path, k, iterations = Path(arguments.data), arguments.k, arguments.iterations
    contender = cluster_peers.PEERS.get(arguments.child, cluster_peers.mlcd_cluster)
    start, began = time.process_time(), time.monotonic()
    centers = contender(path, k, iterations, arguments.child.split()[-1])
    measured = {
        "cpu": time.process_time() - start,
        "wall": time.monotonic() - began,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps({**measured, "objective": objective(path, centers)}))


def run(name: str, data: Path, k: int, iterations: int) -> dict[str, float]:
    """Return what one run of a contender, in a process of its own, has measured."""
    words = [sys.executable, __file__, "--child", name, "--data", data]
    words += ["--k", k, "--iterations", iterations]
    one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    done = subprocess.run(
        list(map(str, words)), env={**os.environ, **one}, check=True, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(name, found, file=sys.stderr, flush=True)
    return found


def measure(
    data: Path, names: list[str], arguments: argparse.Namespace, goal: float, title: str
) -> None:
    """Print the table of the contenders `names` on the rows of `data`, and how the goals are met.

    `goal`: the share of faiss.Kmeans's CPU seconds that ours may take at most.
    """
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for _ in range(arguments.repeats):
        for name in names:
            runs[name].append(run(name, data, arguments.k, arguments.iterations))
    print("| | CPU-seconds | of the first | wall seconds | peak MiB | objective |")
    print("|---|---:|---:|---:|---:|---:|")
    base = statistics.median(result["cpu"] for result in runs[names[0]])
    for name, results in runs.items():
        cpu, wall, peak, value = (
            [result[key] for result in results] for key in ("cpu", "wall", "peak", "objective")
        )
        spread = f"({min(cpu):.2f} to {max(cpu):.2f})"
        print(
            f"| {name} | {statistics.median(cpu):.2f} {spread} "
            f"| {statistics.median(cpu) / base:.2f} | {statistics.median(wall):.1f} "
            f"| {max(peak):.0f} | {statistics.median(value):.4f} |",
            flush=True,
        )
    seconds = {name: [result["cpu"] for result in results] for name, results in runs.items()}
    ours, peers = seconds[names[-1]], {name: seconds[name] for name in names[:-1]}
    if peers:
        goals.state(f"k-means, {title}", ours, peers, 1.0)
    if goal < 1 and "faiss.Kmeans" in peers:
        faiss = {"faiss.Kmeans": peers["faiss.Kmeans"]}
        goals.state(f"k-means, {title}, to half of faiss", ours, faiss, goal)


def growth(kind: str, names: list[str], arguments: argparse.Namespace, folder: Path) -> None:
    """Print by which exponent CPU-seconds grow with rows, K and dimensions."""
    sizes = {"rows": arguments.rows, "K": arguments.k, "dim": arguments.dim}
    print("| | exponent in rows | in K | in dimensions |\n|---|---:|---:|---:|")
    for name in names:
        seconds = {}
        for doubled in ("", *sizes):
            now = {size: count * (1 + (size == doubled)) for size, count in sizes.items()}
            data = folder / f"{kind}-{now['rows']}-{now['dim']}.h5"
            if not data.exists():
                kinds.write(data, kind, now["rows"], now["dim"], arguments.groups)
            seconds[doubled] = run(name, data, now["K"], arguments.iterations)["cpu"]
        exponents = (math.log2(seconds[size] / seconds[""]) for size in sizes)
        print(f"| {name} | " + " | ".join(f"{exponent:.2f}" for exponent in exponents) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", choices=list(kinds.KINDS), default=list(kinds.KINDS))
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=256)
    parser.add_argument("--groups", type=int, default=3000)
    parser.add_argument("--k", type=int, default=2048)
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limits", nargs="+", default=["4GiB"])
    parser.add_argument("--data", type=Path, help="embeddings to cluster, instead of kinds")
    parser.add_argument("--crops", type=int, help="as many real ones (crops.py), instead of kinds")
    parser.add_argument("--peers", nargs="*", default=list(cluster_peers.PEERS))
    parser.add_argument("--growth", action="store_true", help="exponents instead of tables")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    print(machine.description())
    names = [name for name in arguments.peers if cluster_peers.installed(name)]
    names += [f"mlcd cluster, limit {limit}" for limit in arguments.limits]
    with tempfile.TemporaryDirectory() as folder:
        if arguments.crops:
            arguments.data = Path(folder) / "crops"
            script, rows = Path(__file__).with_name("crops.py"), str(arguments.crops)
            words = [sys.executable, script, "--rows", rows, "--output", arguments.data]
            subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        for kind in [None] if arguments.data else arguments.kinds:
            data = Path(folder) / "e.h5"
            data.unlink(missing_ok=True)
            if kind is None:
                data.symlink_to(arguments.data.resolve())
            else:
                kinds.write(data, kind, arguments.rows, arguments.dim, arguments.groups)
            n, d = Embeddings(data).n, Embeddings(data).d
            title = f"{kind or arguments.data.name}: {n:,} × {d:,}, K = {arguments.k:,}"
            print(f"\n{title}, {arguments.iterations} iterations\n")
            if kind and arguments.growth:
                growth(kind, names, arguments, Path(folder))
            else:
                measure(data, names, arguments, 1.0 if kind == "isotropic" else 0.5, title)


if __name__ == "__main__":
    main()
