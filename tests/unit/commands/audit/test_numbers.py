"""Numbers that are compared: blocks of centers, and what is no number."""

from __future__ import annotations

from types import SimpleNamespace

import h5py
import numpy as np
import pytest

from helpers.builders import centroids_file, embeddings_file, unit_vectors
from helpers.explored_runs import write_run
from mlcd.commands.audit import nearness, numbers
from mlcd.commands.audit.nodes import collect
from mlcd.data.embeddings import Embeddings
from mlcd.data.labels import Labels
from mlcd.utils.records import write_record


def test_numbers_are_sampled_from_chunks_that_the_run_counts(tmp_path):
    """A list that was taken out of the config leaves files behind, which no center is of."""
    results = write_run(tmp_path / "results", (4, 5, 6), 3, 2)
    files = {path: node.record() for path, node in collect(results)[0].items()}
    lock = {"stages": {}, "inputs": [], "files": files}
    assert len(numbers.Run(results, lock, 10, 0).chunks()) == 3
    names = ["photos-00000", "photos-00002"]
    kept = [Labels(results / "labels" / f"{name}.h5").fingerprint for name in names]
    write_record(results / "labels" / "summary.json", {"made_from": {"labels": kept}})
    assert numbers.Run(results, lock, 10, 0).chunks() == names


@pytest.mark.parametrize("block", [3, 7, 100])
def test_blocks_of_centers_give_what_all_at_once_give(monkeypatch, block):
    rng = np.random.default_rng(0)
    rows, centers = rng.standard_normal((9, 5)), rng.standard_normal((40, 5)).astype(np.float32)
    monkeypatch.setattr(numbers, "_CENTERS", block)
    wanted = -np.sort(-(rows @ centers.T.astype(np.float64)), axis=1)[:, :4]
    np.testing.assert_allclose(numbers._best(rows, centers, 4), wanted, rtol=0, atol=1e-12)


def test_nan_agrees_with_nan_alone():
    nan = float("nan")
    assert nearness._values({"a": nan, "b": 1.0}, {"a": nan, "b": 1.0 + 1e-6})[0] == nearness.CLOSE
    assert nearness._values({"a": nan}, {"a": 0.5})[0] == nearness.DIFFERENT
    assert nearness._values({"a": 0.5}, {"a": nan})[0] == nearness.DIFFERENT
    assert nearness._values({"a": nan, "b": 1.0}, {"a": nan, "b": 2.0})[0] == nearness.DIFFERENT


def run_of(folder, chunks, centers, rows):
    """What a check looks at: chunks of embeddings, centers with their true objective."""
    best = []
    for name, vectors in chunks.items():
        path = embeddings_file(folder / "embeddings" / f"{name}.h5", vectors)
        if len(vectors):
            best.append((Embeddings(path).read(0, len(vectors)) @ centers.T).max(1))
    path = centroids_file(folder / "clusters" / "centroids.h5", centers)
    with h5py.File(path, "a") as file:
        del file["objective"]
        file["objective"] = [float(np.concatenate(best).mean())]
    random = np.random.default_rng(0)
    return SimpleNamespace(
        results=folder, recorded=SimpleNamespace(clustered=("embeddings",)),
        stages={"cluster": {"section": {}}}, skipped=[], told=[], chunks=lambda: list(chunks),
        chosen=lambda n, count: np.sort(random.choice(n, min(n, -(-rows // count)), replace=False)),
    )  # fmt: skip


def test_a_small_list_of_another_kind_does_not_outweigh_a_large_one(tmp_path):
    """An honest run: 4,000 rows that are far from all, and 200 that are nearly one."""
    rng = np.random.default_rng(0)
    alike = unit_vectors(1, 16) + 0.02 * rng.standard_normal((200, 16)).astype(np.float32)
    chunks = {
        "web-00000": unit_vectors(4000, 16, seed=1),
        "none-00000": np.zeros((0, 16), np.float32),  # curated away
        "shop-00000": alike / np.linalg.norm(alike, axis=1, keepdims=True),
    }
    centers = np.concatenate([unit_vectors(5, 16, seed=2), unit_vectors(1, 16)])
    run = run_of(tmp_path, chunks, centers, rows=600)
    assert list(numbers._objective(run)) == []
    (told,) = run.told
    assert told.endswith("on 400 rows")
    # What is not so is still found.
    with h5py.File(tmp_path / "clusters" / "centroids.h5", "a") as file:
        file["objective"][-1] += 0.2
    (found,) = numbers._objective(run)
    assert "on a sample" in found.what
