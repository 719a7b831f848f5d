"""CPU-seconds and objective of k-means: stage cluster beside its peers, with one thread each.

    python benchmarks/cluster.py --rows 200000 --dim 512 --k 4096 --iterations 5 --repeats 3
    python benchmarks/cluster.py --data crops.h5 --k 4096 --iterations 5

Rows in planted groups, or those of a file (benchmarks/crops.py makes real ones). Every run is a
process of its own with one thread, so that CPU-seconds compare the work alone; the contenders take
turns. The objective is exact for each: the mean cosine similarity of a row to its nearest final
center, in float64. Prints a table in Markdown: medians over the repeats, least and greatest
CPU-seconds in brackets. Contenders that are not installed are left out (pip install superkmeans).
"""

from __future__ import annotations

import argparse
import json
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

from mlcd.data.embeddings import Embeddings  # noqa: E402


def write_rows(path: Path, n: int, d: int, groups: int) -> None:
    """Write n unit rows [n, d] in float16 around `groups` random directions."""
    from mlcd.data import hdf5

    rng = np.random.default_rng(0)
    centers = 3 * rng.standard_normal((groups, d), dtype=np.float32)
    with hdf5.writing(path, "embeddings", {"model": "{}"}) as writer:
        for start in range(0, n, 10_000):
            rows = rng.standard_normal((min(10_000, n - start), d), dtype=np.float32)
            rows += centers[rng.integers(0, groups, len(rows))]
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            writer.append("embedding", rows.astype(np.float16))


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--groups", type=int, default=3000)
    parser.add_argument("--k", type=int, default=4096)
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limits", nargs="+", default=["4GiB", "512MiB"])
    parser.add_argument("--data", type=Path, help="embeddings to cluster, instead of planted ones")
    parser.add_argument("--peers", nargs="*", default=list(cluster_peers.PEERS))
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    names = [name for name in arguments.peers if cluster_peers.installed(name)]
    names += [f"mlcd cluster, limit {limit}" for limit in arguments.limits]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "e.h5"
        if arguments.data:
            data.symlink_to(arguments.data.resolve())
        else:
            write_rows(data, arguments.rows, arguments.dim, arguments.groups)
        for _ in range(arguments.repeats):
            for name in names:
                words = [sys.executable, __file__, "--child", name, "--data", data]
                words += ["--k", arguments.k, "--iterations", arguments.iterations]
                one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
                done = subprocess.run(
                    list(map(str, words)), env={**os.environ, **one}, check=True,
                    stdout=subprocess.PIPE, text=True,
                )  # fmt: skip
                runs[name].append(json.loads(done.stdout.splitlines()[-1]))
                print(name, runs[name][-1], file=sys.stderr, flush=True)
        n, d = Embeddings(data).n, Embeddings(data).d
    print(f"{n} rows, d = {d}, K = {arguments.k}, {arguments.iterations} iterations\n")
    print("| | CPU-seconds | of the first | wall seconds | peak MiB | objective |")
    print("|---|---:|---:|---:|---:|---:|")
    base = statistics.median(result["cpu"] for result in runs[names[0]])
    for name, results in runs.items():
        cpu, wall, peak, value = (
            [result[key] for result in results] for key in ("cpu", "wall", "peak", "objective")
        )
        spread = f"({min(cpu):.1f} to {max(cpu):.1f})"
        print(
            f"| {name} | {statistics.median(cpu):.1f} {spread} "
            f"| {statistics.median(cpu) / base:.2f} | {statistics.median(wall):.1f} "
            f"| {max(peak):.0f} | {statistics.median(value):.4f} |"
        )


if __name__ == "__main__":
    main()
