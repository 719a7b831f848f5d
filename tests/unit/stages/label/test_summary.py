"""The summary of labels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from helpers import builders
from helpers.builders import unit
from helpers.label_runs import pair, run, summary_of
from helpers.refusals import refused
from mlcd.data.centroids import Centroids
from mlcd.data.labels import Labels


def test_summary_counts(tmp_path: Path) -> None:
    embeddings, _ = pair(tmp_path)
    centroids = builders.centroids_file(tmp_path / "c.h5", builders.unit_vectors(40, 24))
    first = np.array([[0, 1, 2], [0, 3, -1], [0, -1, -1]])
    second = np.full((50, 3), [7, 0, 1])
    files = [
        builders.labels_file(tmp_path / f"l{index}.h5", rows, 40, embeddings)
        for index, rows in enumerate((first, second))
    ]
    summary = summary_of(tmp_path, *files, centroids=centroids)
    assert summary["images"] == 53
    assert (summary["num_classes"], summary["labels_per_image"]) == (40, 3)
    assert summary["images_by_number_of_labels"] == {"1": 1, "2": 1, "3": 51}
    use = summary["use_as_any_label"]
    counts = np.zeros(40, int)
    counts[[0, 1, 2, 3, 7]] = [53, 51, 1, 1, 50]
    assert use["mean"] == counts.mean()
    assert use["unused"] == 35
    assert use["quantiles"]["0.5"] == 0
    assert use["quantiles"]["1.0"] == 53
    assert use["huge"]["classes"] == 3
    assert use["huge"]["largest"] == [[0, 53], [1, 51], [7, 50]]
    bins = {(b["from"], b["to"]): b["classes"] for b in use["histogram"] if b["classes"]}
    assert bins == {(0, 0): 35, (1, 1): 2, (32, 63): 3}
    assert summary["use_as_first_label"]["huge"]["largest"] == [[7, 50]]
    assert summary["similarity_of_last_label"]["mean"] == 0.5
    assert summary["cluster_sizes"]["mean"] == 1
    assert summary["near_duplicate_centers"]["centers"] == 0


def test_summary_of_similarities_equals_numpy(tmp_path: Path) -> None:
    embeddings, centroids = pair(tmp_path)
    run("--embeddings", embeddings, "--centroids", centroids, "--top", 5, "--threshold", 0.3,
        "--output", tmp_path / "l.h5")  # fmt: skip
    labels = Labels(tmp_path / "l.h5")
    similarity, number = labels.similarity().astype(float), (labels.label() >= 0).sum(axis=1)
    summary = summary_of(tmp_path, labels.path, centroids=centroids)
    pairs = [
        (summary["similarity_of_last_label"], similarity[np.arange(500), number - 1]),
        (summary["gap_after_last_label"], labels.gap().astype(float)),
    ]
    for place, found in enumerate(summary["similarity_of_label"]):
        pairs.append((found, similarity[number > place, place]))
    assert len(pairs) == 2 + 5
    for found, values in pairs:
        assert found["mean"] == pytest.approx(values.mean(), abs=1e-12)
        for q, value in found["quantiles"].items():
            assert value == np.quantile(values, float(q), method="lower")


def test_summary_finds_near_duplicate_centers(tmp_path: Path) -> None:
    centers = builders.unit_vectors(30, 24)
    centers[20] = unit(centers[4:5] + 0.001 * builders.unit_vectors(1, 24, seed=1))[0]
    centers[[25, 26, 27]] = centers[6]
    centroids = builders.centroids_file(tmp_path / "c.h5", centers)
    embeddings = builders.embeddings_file(tmp_path / "e.h5", centers)
    labels = builders.labels_file(tmp_path / "l.h5", np.zeros((30, 2)), 30, embeddings)
    found = summary_of(tmp_path, labels, centroids=centroids)["near_duplicate_centers"]
    assert found["centers"] == 6
    assert found["search"] == "exact"
    pairs = {center: other for center, other, _ in found["nearest"]}
    assert pairs == {4: 20, 20: 4, 6: 25, 25: 6, 26: 6, 27: 6}
    assert all(cosine > 0.999 for _, _, cosine in found["nearest"])


def test_near_duplicates_of_many_centers_are_found_by_groups(tmp_path: Path, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    centers = np.repeat(builders.unit_vectors(300, 24), 2, axis=0)[rng.permutation(600)]
    centers[:400] = builders.unit_vectors(400, 24, seed=1)
    centroids = builders.centroids_file(tmp_path / "c.h5", centers)
    embeddings = builders.embeddings_file(tmp_path / "e.h5", centers)
    labels = builders.labels_file(tmp_path / "l.h5", np.zeros((60, 2)), 600, embeddings)
    exact = summary_of(tmp_path, labels, centroids=centroids)["near_duplicate_centers"]
    monkeypatch.setattr("mlcd.stages.label.summary.EXACT_UP_TO", 20)
    found = summary_of(tmp_path, labels, centroids=centroids)["near_duplicate_centers"]
    assert exact["centers"] > 50
    assert found == {**exact, "search": "two_level"}


def test_summary_refuses_labels_of_other_centroids(tmp_path: Path, capsys) -> None:
    embeddings, centroids = pair(tmp_path)
    run("--embeddings", embeddings, "--centroids", centroids, "--output", tmp_path / "l.h5")
    changed = Centroids(centroids).array[::-1]
    builders.centroids_file(tmp_path / "c2.h5", changed)
    builders.centroids_file(tmp_path / "c3.h5", changed[:9])
    short = builders.labels_file(tmp_path / "s.h5", np.zeros((5, 2)), 60, embeddings)
    for files, centers, words in [
        (["l.h5"], "c2.h5", ["l.h5: made with other centroids"]),
        (["l.h5"], "c3.h5", ["l.h5: labels of 60 classes", "has 9"]),
        (["l.h5", short.name], "c.h5", ["s.h5: 2 labels per image", "has 4"]),
    ]:
        paths = [tmp_path / name for name in files]
        output = tmp_path / "s.json"
        assert (
            run("--summarize", *paths, "--centroids", tmp_path / centers, "--output", output) == 2
        )
        refused(capsys, *words)
