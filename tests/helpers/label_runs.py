"""Embeddings and centroids for the stage label, its runs in this process, and the plain top l."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from helpers import builders
from helpers.builders import unit
from mlcd import cli


def run(*words: object) -> int:
    return cli.main(["label", *map(str, words)])


def plain_top(rows: np.ndarray, centers: np.ndarray, l: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and similarities of the `l` nearest in float64, ties by lower id."""
    scores = rows.astype(float) @ centers.astype(float).T
    # The last bits of a product depend on its shape; true ties differ by less than this.
    ids = np.argsort(-np.round(scores, 13), axis=1, kind="stable")[:, :l]
    return ids, np.take_along_axis(scores, ids, axis=1)


def pair(folder: Path, n: int = 500, k: int = 60, d: int = 24) -> tuple[Path, Path]:
    """Write embeddings and centroids with planted groups."""
    rows = builders.unit_vectors(n, d, groups=15, seed=1)
    embeddings = builders.embeddings_file(folder / "a-00000.h5", rows)
    centers = unit(rows[:k] + 0.02 * builders.unit_vectors(k, d, seed=2))
    return embeddings, builders.centroids_file(folder / "c.h5", centers)


def summary_of(tmp_path: Path, *files: Path, centroids: Path) -> dict:
    output = tmp_path / "summary.json"
    assert run("--summarize", *files, "--centroids", centroids, "--output", output) == 0
    return json.loads(output.read_text())
