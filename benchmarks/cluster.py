"""CPU-seconds and objective of k-means: stage cluster beside faiss.Kmeans, on planted groups.

    python benchmarks/cluster.py --rows 200000 --dim 512 --k 4096 --iterations 5 --repeats 3

Every run is a process of its own with one thread, so that CPU-seconds compare the work alone.
The objective is exact for each: the mean cosine similarity of a row to its nearest final centre.
Prints a table in Markdown: medians over the repeats, least and greatest CPU-seconds in brackets.
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


def write_rows(path: Path, n: int, d: int, groups: int) -> None:
    """Write n unit rows [n, d] in float16 around `groups` random directions."""
    sys.path.insert(0, str(SOURCE))
    from mlcd.stores import h5

    rng = np.random.default_rng(0)
    centres = 3 * rng.standard_normal((groups, d), dtype=np.float32)
    with h5.writing(path, "embeddings", {"model": "{}"}) as writer:
        for start in range(0, n, 10_000):
            rows = rng.standard_normal((min(10_000, n - start), d), dtype=np.float32)
            rows += centres[rng.integers(0, groups, len(rows))]
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)
            writer.append("embedding", rows.astype(np.float16))


def run_mlcd(path: Path, k: int, iterations: int, limit: str) -> np.ndarray:
    """Cluster with the stage; return centres float32 [K, d]."""
    from mlcd import cli
    from mlcd.stores.centroids import Centroids

    output = path.with_name(f"c-{os.getpid()}.h5")
    words = ["cluster", "--embeddings", path, "--output", output, "--threads", 1]
    words += ["--k", k, "--iterations", iterations, "--memory-limit", limit]
    if cli.main([str(word) for word in words]):
        raise SystemExit(1)
    return Centroids(output).array


def run_faiss(path: Path, k: int, iterations: int) -> np.ndarray:
    """Cluster with faiss.Kmeans without subsampling; return centres float32 [K, d]."""
    import faiss

    from mlcd.stores.embeddings import Embeddings

    faiss.omp_set_num_threads(1)
    rows = Embeddings(path).read()
    faiss.normalize_L2(rows)
    kmeans = faiss.Kmeans(
        rows.shape[1], k, niter=iterations, spherical=True, seed=0,
        max_points_per_centroid=len(rows),
    )  # fmt: skip
    kmeans.train(rows)
    return kmeans.centroids


def objective(path: Path, centres: np.ndarray) -> float:
    """Return the mean cosine similarity of a row to its nearest centre, in float64."""
    from mlcd.neighbours.exact import ExactSearch
    from mlcd.neighbours.rows import Rows
    from mlcd.stores.embeddings import Embeddings

    search, total = ExactSearch(centres, threads=1), 0.0
    rows = Rows([Embeddings(path)], 8192)
    for _, block in rows.blocks():
        total += search.similarities(block, search.nearest(block, 1)).sum()
    return total / rows.n


def child(arguments: argparse.Namespace) -> None:
    """One measured run in this process; prints a line of JSON."""
    sys.path.insert(0, str(SOURCE))
    path, k, iterations = Path(arguments.data), arguments.k, arguments.iterations
    start, began = time.process_time(), time.monotonic()
    if arguments.child == "faiss.Kmeans":
        centres = run_faiss(path, k, iterations)
    else:
        centres = run_mlcd(path, k, iterations, arguments.child.split()[-1])
    measured = {
        "cpu": time.process_time() - start,
        "wall": time.monotonic() - began,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps({**measured, "objective": objective(path, centres)}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--groups", type=int, default=3000)
    parser.add_argument("--k", type=int, default=4096)
    parser.add_argument("--iterations", type=int, default=5)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--limits", nargs="+", default=["4GiB", "512MiB"])
    parser.add_argument("--child", help=argparse.SUPPRESS)
    parser.add_argument("--data", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        child(arguments)
        return
    names = ["faiss.Kmeans", *(f"mlcd cluster, limit {limit}" for limit in arguments.limits)]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "e.h5"
        write_rows(data, arguments.rows, arguments.dim, arguments.groups)
        for _ in range(arguments.repeats):
            for name in names:
                words = [sys.executable, __file__, "--child", name, "--data", data]
                words += ["--k", arguments.k, "--iterations", arguments.iterations]
                one = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
                done = subprocess.run(
                    list(map(str, words)), env={**os.environ, **one}, check=True,
                    capture_output=True, text=True,
                )  # fmt: skip
                runs[name].append(json.loads(done.stdout.splitlines()[-1]))
    print(f"{arguments.rows} rows, d = {arguments.dim}, K = {arguments.k}, ", end="")
    print(f"{arguments.iterations} iterations, {arguments.groups} planted groups\n")
    print("| | CPU-seconds | wall seconds | peak MiB | objective |\n|---|---|---|---|---|")
    for name, results in runs.items():
        cpu, wall, peak, value = (
            [result[key] for result in results] for key in ("cpu", "wall", "peak", "objective")
        )
        spread = f"({min(cpu):.1f} to {max(cpu):.1f})"
        print(
            f"| {name} | {statistics.median(cpu):.1f} {spread} | {statistics.median(wall):.1f} "
            f"| {max(peak):.0f} | {statistics.median(value):.4f} |"
        )


if __name__ == "__main__":
    main()
