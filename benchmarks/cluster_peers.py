"""The contenders of benchmarks/cluster.py: each clusters the rows of a file, with one thread.

Each is a function (file, K, iterations, limit) → centers float32 [K, d] as the library leaves them.
None takes a sample of the rows or stops early. faiss and sklearn start from random rows, as the
stage does. `limit` is for the stage alone.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np

SEED = 0


def rows_of(path: Path) -> np.ndarray:
    """Return all rows, float32 [n, d], of unit length."""
    import faiss

    from mlcd.data.embeddings import Embeddings

    faiss.omp_set_num_threads(1)
    rows = Embeddings(path).read()
    faiss.normalize_L2(rows)
    return rows


def mlcd_cluster(path: Path, k: int, iterations: int, limit: str) -> np.ndarray:
    """Cluster with the stage."""
    from mlcd import cli
    from mlcd.data.centroids import Centroids

    output = path.with_name(f"c-{os.getpid()}.h5")
    words = ["cluster", "--embeddings", path, "--output", output, "--threads", 1]
    words += ["--k", k, "--iterations", iterations, "--memory-limit", limit, "--seed", SEED]
    if cli.main([str(word) for word in words]):
        raise SystemExit(1)
    return Centroids(output).array


def faiss_kmeans(path: Path, k: int, iterations: int, limit: str) -> np.ndarray:
    import faiss

    rows = rows_of(path)
    kmeans = faiss.Kmeans(
        rows.shape[1], k, niter=iterations, spherical=True, seed=SEED,
        max_points_per_centroid=len(rows),
    )  # fmt: skip
    kmeans.train(rows)
    return kmeans.centroids


def faiss_superkmeans(path: Path, k: int, iterations: int, limit: str) -> np.ndarray:
    import faiss

    rows = rows_of(path)
    kmeans = faiss.SuperKmeans(
        rows.shape[1], k, niter=iterations, spherical=True, seed=SEED,
        max_points_per_centroid=len(rows),
    )  # fmt: skip
    kmeans.train(rows)
    return kmeans.centroids


def sklearn_lloyd(path: Path, k: int, iterations: int, limit: str) -> np.ndarray:
    from sklearn.cluster import KMeans

    kmeans = KMeans(
        k, init="random", n_init=1, max_iter=iterations, tol=0, algorithm="lloyd",
        random_state=SEED,
    )  # fmt: skip
    return kmeans.fit(rows_of(path)).cluster_centers_


def pypi_superkmeans(path: Path, k: int, iterations: int, limit: str) -> np.ndarray:
    """Cluster with the package superkmeans (pip install superkmeans)."""
    from superkmeans import SuperKMeans

    rows = rows_of(path)
    kmeans = SuperKMeans(
        k, rows.shape[1], hierarchical=False, iters=iterations, sampling_fraction=1.0,
        max_points_per_cluster=len(rows), n_threads=1, seed=SEED, early_termination=False,
        angular=True,
    )  # fmt: skip
    return kmeans.train(rows)


PEERS: dict[str, Callable[[Path, int, int, str], np.ndarray]] = {
    "faiss.Kmeans": faiss_kmeans,
    "faiss.SuperKmeans": faiss_superkmeans,
    "superkmeans (PyPI)": pypi_superkmeans,
    "sklearn KMeans (lloyd)": sklearn_lloyd,
}


def installed(name: str) -> bool:
    """Return whether the library of a contender is there."""
    return name != "superkmeans (PyPI)" or importlib.util.find_spec("superkmeans") is not None
