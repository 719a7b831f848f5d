"""Stage cluster, held to plain float64 versions of spherical k-means."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from helpers import builders
from helpers.builders import unit
from helpers.cluster_runs import files_of, run, stored
from helpers.refusals import refused
from mlcd.config import Cluster
from mlcd.data.centroids import Centroids
from mlcd.data.embeddings import Embeddings, open_all
from mlcd.neighbors.rows import Rows
from mlcd.stages.cluster import initial
from mlcd.stages.cluster.kmeans import _settled, run_kmeans


def plain_lloyd(rows: np.ndarray, centers: np.ndarray, iterations: int):
    """Spherical k-means in float64; returns centers, sizes and objective of each iteration."""
    objective = []
    for _ in range(iterations):
        scores = rows @ centers.T
        nearest = scores.argmax(axis=1)
        objective.append(scores.max(axis=1).mean())
        sizes = np.bincount(nearest, minlength=len(centers))
        sums = np.zeros_like(centers)
        np.add.at(sums, nearest, rows)
        centers = np.where(sizes[:, None] > 0, unit(sums + 1e-300), centers)
    return centers, sizes, np.array(objective)


@pytest.mark.parametrize("parts", [1, 3])
def test_equals_plain_lloyd_from_the_same_centers(tmp_path: Path, parts: int) -> None:
    files = files_of(tmp_path, builders.unit_vectors(900, 24, groups=12), parts)
    rows = Rows(open_all(files), 128)
    section = Cluster(k=12, iterations=6, seed=3)
    start = initial.random_rows(rows, 12, 3)
    state = run_kmeans(rows, section, start.copy)
    centers, sizes, objective = plain_lloyd(stored(files), start.astype(float), 6)
    assert sizes.min() > 0, "the plain version does not repair: choose a case without empties"
    np.testing.assert_array_equal(state.size, sizes)
    np.testing.assert_allclose(state.centers, centers, atol=2e-7)
    np.testing.assert_allclose([r["objective"] for r in state.records], objective, atol=1e-7)


def test_output_and_record(tmp_path: Path) -> None:
    files = files_of(tmp_path, builders.unit_vectors(400, 16, groups=8), 2)
    assert run(files, tmp_path / "out/c.h5", "--k", 8, "--iterations", 5, "--seed", 1) == 0
    result = Centroids(tmp_path / "out/c.h5")
    assert (result.K, result.d) == (8, 16)
    assert result.sizes.sum() == 400
    np.testing.assert_allclose(np.linalg.norm(result.array, axis=1), 1, atol=1e-6)
    assert json.loads(result.model) == {"name": "test", "dim": 16}
    assert json.loads(result.embeddings) == [Embeddings(path).fingerprint for path in files]
    assert json.loads(result.section)["k"] == 8
    lines = (tmp_path / "out/iterations.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["iteration"] for record in records] == [1, 2, 3, 4, 5]
    assert [record["objective"] for record in records] == result.objective.tolist()
    assert [record["empty"] for record in records] == result.empty.tolist()
    assert records[-1]["largest"] == result.sizes.max()
    objective = result.objective[np.flatnonzero(result.empty == 0)]
    assert (np.diff(objective) >= -1e-7).all()


@pytest.mark.parametrize("init", ["random", "kmeans++", "afkmc2"])
def test_same_bytes_for_any_blocks_files_limit_and_threads(tmp_path: Path, init: str) -> None:
    vectors = builders.unit_vectors(3000, 40, groups=30)
    vectors[500:520] = vectors[3]  # copies make exact ties
    options = ["--k", 64, "--iterations", 4, "--init", init, "--seed", 5]
    one = files_of(tmp_path / "one", vectors)
    many = files_of(tmp_path / "many", vectors, 7)
    runs = [
        (one, ["--memory-limit", "6GiB", "--threads", 1]),
        (many, ["--memory-limit", "6GiB", "--threads", 2]),
        (many, ["--memory-limit", builders.memory_limit(450), "--threads", 1]),
    ]
    texts, arrays = [], []
    for index, (files, more) in enumerate(runs):
        output = tmp_path / f"out{index}/c.h5"
        assert run(files, output, *options, *more) == 0
        texts.append(output.with_name("iterations.jsonl").read_bytes())
        arrays.append(Centroids(output).array.tobytes())
    assert len(set(texts)) == len(set(arrays)) == 1
    whole = [(tmp_path / f"out{index}/c.h5").read_bytes() for index in (1, 2)]
    assert whole[0] == whole[1]


@pytest.mark.parametrize("rows_a_block", [7, 64, 5000])
def test_same_bits_for_any_block_kept_or_streamed(tmp_path: Path, rows_a_block: int) -> None:
    files = open_all(files_of(tmp_path, builders.unit_vectors(300, 24, groups=9), 3))
    section = Cluster(k=20, iterations=2)
    results = []
    for rows in (Rows(files, 100), Rows(files, rows_a_block), Rows(files, rows_a_block, keep=True)):
        state = run_kmeans(rows, section, lambda rows=rows: initial.random_rows(rows, 20, 0))
        results.append((state.centers.tobytes(), state.size.tobytes(), json.dumps(state.records)))
    assert len(set(results)) == 1


def test_empty_clusters_are_repaired(tmp_path: Path) -> None:
    # Two far groups, and all four centers start in one: three of them share it, then one is empty.
    rng = np.random.default_rng(0)
    axis = np.eye(16)[:2]
    group = np.repeat([0, 1], [300, 100])
    files = files_of(tmp_path, unit(axis[group] + 0.05 * rng.standard_normal((400, 16))))
    away = unit(np.concatenate([axis, -axis])).astype(np.float32)
    state = run_kmeans(Rows(open_all(files), 64), Cluster(k=4, iterations=6), away.copy)
    assert [record["empty"] for record in state.records][:3] == [2, 0, 0]
    assert (state.size > 20).all(), state.size
    assert state.records[-1]["objective"] > state.records[0]["objective"] + 1e-3


def test_fewer_distinct_rows_than_clusters(tmp_path: Path) -> None:
    files = files_of(tmp_path, np.repeat(builders.unit_vectors(3, 8), 20, axis=0))
    for init in ("random", "kmeans++", "afkmc2"):
        assert run(files, tmp_path / "c.h5", "--k", 5, "--iterations", 4, "--init", init) == 0
        result = Centroids(tmp_path / "c.h5")
        assert sorted(result.sizes.tolist()) in ([0, 0, 20, 20, 20], [0, 0, 0, 20, 40])
        if init != "random":
            assert result.objective[-1] == pytest.approx(1, abs=1e-6)


def test_k_1_and_k_n(tmp_path: Path) -> None:
    files = files_of(tmp_path, builders.unit_vectors(30, 8), 2)
    assert run(files, tmp_path / "c1.h5", "--k", 1, "--iterations", 2) == 0
    rows = stored(files)
    mean = rows.sum(axis=0)
    one = Centroids(tmp_path / "c1.h5")
    np.testing.assert_allclose(one.array[0], mean / np.linalg.norm(mean), atol=1e-6)
    assert one.objective[-1] == pytest.approx(np.linalg.norm(mean) / 30, abs=1e-7)
    assert run(files, tmp_path / "cn.h5", "--k", 30, "--iterations", 2) == 0
    every = Centroids(tmp_path / "cn.h5")
    assert every.sizes.tolist() == [1] * 30
    assert every.objective[-1] == pytest.approx(1, abs=1e-7)


def test_stops_by_tolerance_but_not_while_repairing(tmp_path: Path) -> None:
    files = files_of(tmp_path, builders.unit_vectors(500, 16, groups=5))
    assert run(files, tmp_path / "c.h5", "--k", 5, "--iterations", 50, "--tolerance", 1e-4) == 0
    result = Centroids(tmp_path / "c.h5")
    gains = np.diff(result.objective) / result.objective[:-1]
    assert len(result.objective) < 50
    assert gains[-1] < 1e-4
    quiet = result.empty[1:] + result.empty[:-1] == 0
    assert not (gains[:-1][quiet[:-1]] < 1e-4).any()


def test_float32_and_foreign_files(tmp_path: Path) -> None:
    vectors = builders.unit_vectors(200, 12, groups=6)
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["embedding"] = vectors * np.arange(1, 201, dtype=np.float32)[:, None]
    assert run([tmp_path / "f.h5"], tmp_path / "c.h5", "--k", 6, "--iterations", 3) == 0
    result = Centroids(tmp_path / "c.h5")
    centers, sizes, objective = plain_lloyd(
        unit(vectors.astype(float)),
        vectors[np.random.default_rng(0).choice(200, 6, replace=False, shuffle=False)],
        3,
    )
    np.testing.assert_array_equal(result.sizes, sizes)
    np.testing.assert_allclose(result.array, centers, atol=1e-6)
    np.testing.assert_allclose(result.objective, objective, atol=1e-7)


def test_given_centers_are_where_it_starts(tmp_path: Path) -> None:
    files = files_of(tmp_path, builders.unit_vectors(600, 16, groups=9))
    options = ["--k", 9, "--iterations"]
    assert run(files, tmp_path / "four/c.h5", *options, 4) == 0
    assert run(files, tmp_path / "one/c.h5", *options, 1) == 0
    again = ["--initial", tmp_path / "one/c.h5"]
    assert run(files, tmp_path / "three/c.h5", *options, 3, *again) == 0
    four, three = (Centroids(tmp_path / name / "c.h5") for name in ("four", "three"))
    assert four.array.tobytes() == three.array.tobytes()
    assert four.objective[1:].tolist() == three.objective.tolist()
    # The output names the content of the file, not its place.
    (tmp_path / "else").mkdir()
    (tmp_path / "one/c.h5").rename(tmp_path / "else/d.h5")
    again = ["--initial", tmp_path / "else/d.h5"]
    assert run(files, tmp_path / "other/c.h5", *options, 3, *again) == 0
    whole = [(tmp_path / name / "c.h5").read_bytes() for name in ("three", "other")]
    assert whole[0] == whole[1]


@pytest.mark.parametrize(
    ("centers", "words"),
    [
        (None, "no file that can be read"),
        (np.ones((3, 8), np.float32), "expected centers [4, 8], found [3, 8]"),
        (np.ones((4, 9), np.float32), "expected centers [4, 8], found [4, 9]"),
        (np.ones((4, 8), np.int64), "int64"),
        (np.float32([[1] * 8] * 3 + [[0] * 8]), "center 3 is zero"),
        (np.float32([[1] * 8] * 3 + [[np.nan] * 8]), "center 3 is zero or not finite"),
        ("a group", "expected a dataset 'centroid', found none"),
    ],
)
def test_unfitting_given_centers_are_refused(tmp_path: Path, capsys, centers, words) -> None:
    files = files_of(tmp_path, builders.unit_vectors(20, 8))
    path = tmp_path / "given.h5"
    if centers is not None:
        with h5py.File(path, "w") as file:
            if isinstance(centers, str):
                file.create_group("centroid")
            else:
                file["centroid"] = centers
    assert run(files, tmp_path / "c.h5", "--k", 4, "--initial", path) == 2
    refused(capsys, f"{path}: ", words)


def test_settled_only_without_repairs() -> None:
    def records(*items: tuple[float, int], shift: float = 0.1) -> list[dict]:
        return [{"objective": value, "empty": empty, "shift": shift} for value, empty in items]

    assert not _settled(records((0.5, 0)), 0.01)
    assert _settled(records((0.5, 0), (0.504, 0)), 0.01)
    assert not _settled(records((0.5, 0), (0.506, 0)), 0.01)
    assert not _settled(records((0.5, 1), (0.504, 0)), 0.01)
    assert not _settled(records((0.5, 0), (0.504, 1)), 0.01)
    assert not _settled(records((0.5, 0), (0.5, 0)), 0.0)
    # A fixed point ends the run whatever the tolerance, unless a repair is still to show.
    assert _settled(records((0.5, 0), shift=0.0), 0.0)
    assert not _settled(records((0.5, 1), shift=0.0), 0.0)
