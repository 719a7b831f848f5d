"""Stage cluster, held to plain float64 versions of spherical k-means."""

from __future__ import annotations

import json
import re
from pathlib import Path

import builders
import h5py
import numpy as np
import pytest

from mlcd import cli
from mlcd.cluster import initial
from mlcd.cluster.kmeans import _settled, run_kmeans
from mlcd.cluster.sums import ClusterSums
from mlcd.cluster.update import move_centres, repair_empty
from mlcd.config import Cluster
from mlcd.neighbours.rows import Rows
from mlcd.stores.centroids import Centroids
from mlcd.stores.embeddings import Embeddings, open_all


def files_of(folder: Path, vectors: np.ndarray, parts: int = 1, **keys) -> list[Path]:
    """Write `vectors` as `parts` embeddings files."""
    folder.mkdir(parents=True, exist_ok=True)
    return [
        builders.embeddings_file(folder / f"e{index}.h5", part, **keys)
        for index, part in enumerate(np.array_split(vectors, parts))
    ]


def run(files: list[Path], output: Path, *options: object) -> int:
    words = ["cluster", "--embeddings", *files, "--output", output, *options]
    return cli.main([str(word) for word in words])


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> None:
    """Check that the last run said one line on stderr with all `words`, and no traceback."""
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert sum(all(word in line for word in words) for line in said.splitlines()) == 1, said


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def stored(files: list[Path]) -> np.ndarray:
    """Return what the files hold as float64 unit rows."""
    return unit(np.concatenate([h5py.File(path)["embedding"][:] for path in files]).astype(float))


def plain_lloyd(rows: np.ndarray, centres: np.ndarray, iterations: int):
    """Spherical k-means in float64; returns centres, sizes and objective of each iteration."""
    objective = []
    for _ in range(iterations):
        scores = rows @ centres.T
        nearest = scores.argmax(axis=1)
        objective.append(scores.max(axis=1).mean())
        sizes = np.bincount(nearest, minlength=len(centres))
        sums = np.zeros_like(centres)
        np.add.at(sums, nearest, rows)
        centres = np.where(sizes[:, None] > 0, unit(sums + 1e-300), centres)
    return centres, sizes, np.array(objective)


@pytest.mark.parametrize("parts", [1, 3])
def test_equals_plain_lloyd_from_the_same_centres(tmp_path: Path, parts: int) -> None:
    files = files_of(tmp_path, builders.unit_vectors(900, 24, groups=12), parts)
    rows = Rows(open_all(files), 128)
    section = Cluster(k=12, iterations=6, seed=3)
    start = initial.random_rows(rows, 12, 3)
    state = run_kmeans(rows, section, start.copy)
    centres, sizes, objective = plain_lloyd(stored(files), start.astype(float), 6)
    assert sizes.min() > 0, "the plain version does not repair: choose a case without empties"
    np.testing.assert_array_equal(state.size, sizes)
    np.testing.assert_allclose(state.centres, centres, atol=2e-7)
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
        results.append((state.centres.tobytes(), state.size.tobytes(), json.dumps(state.records)))
    assert len(set(results)) == 1


def test_sums_do_not_depend_on_the_order_of_rows() -> None:
    rng = np.random.default_rng(0)
    rows, cluster = builders.unit_vectors(2000, 17), rng.integers(0, 9, 2000)
    totals = []
    for order in (np.arange(2000), rng.permutation(2000)):
        sums = ClusterSums(9, 17, 2000)
        for part in np.array_split(order, 13):
            sums.add(rows, part, cluster[part])
        totals.append(sums.total)
    np.testing.assert_array_equal(*totals)
    plain = np.zeros((9, 17))
    np.add.at(plain, cluster, rows.astype(float))
    np.testing.assert_allclose(sums.mean_direction(0, 9)[0], plain, atol=1e-7)
    np.testing.assert_array_equal(sums.size, np.bincount(cluster))


def test_sums_of_many_rows_do_not_overflow() -> None:
    sums = ClusterSums(1, 1, 700_000_000)
    sums.total[0, 0] = 699_999_999 << sums.bits
    sums.add(np.ones((1, 1), np.float32), np.zeros(1, int), np.zeros(1, int))
    assert sums.mean_direction(0, 1)[0].item() == 700_000_000


def test_empty_clusters_are_repaired(tmp_path: Path) -> None:
    # Two far groups, and all four centres start in one: three of them share it, then one is empty.
    rng = np.random.default_rng(0)
    axis = np.eye(16)[:2]
    group = np.repeat([0, 1], [300, 100])
    files = files_of(tmp_path, unit(axis[group] + 0.05 * rng.standard_normal((400, 16))))
    away = unit(np.concatenate([axis, -axis])).astype(np.float32)
    state = run_kmeans(Rows(open_all(files), 64), Cluster(k=4, iterations=6), away.copy)
    assert [record["empty"] for record in state.records][:3] == [2, 0, 0]
    assert (state.size > 20).all(), state.size
    assert state.records[-1]["objective"] > state.records[0]["objective"] + 1e-3


def test_repair_splits_the_greatest_spread_first_and_never_copies() -> None:
    # Cluster 0: many copies of one row; 1: a wide one; 2: a narrow one; 3 and 4: empty.
    rng = np.random.default_rng(1)
    wide = unit(np.eye(8)[1] + 0.3 * rng.standard_normal((50, 8)))
    narrow = unit(np.eye(8)[2] + 0.05 * rng.standard_normal((60, 8)))
    rows = np.concatenate([np.tile(np.eye(8)[0], (500, 1)), wide, narrow]).astype(np.float32)
    sums = ClusterSums(5, 8, len(rows))
    sums.add(rows, np.arange(610), np.repeat([0, 1, 2], [500, 50, 60]))
    centres = unit(rng.standard_normal((5, 8))).astype(np.float32)
    before = centres.copy()
    _, _, spread = move_centres(centres, sums)
    np.testing.assert_array_equal(centres[3:], before[3:])
    old, moved = centres.copy(), np.zeros(5, bool)
    assert repair_empty(centres, sums.size, spread, [0, 1], moved) == 2
    np.testing.assert_array_equal(centres[[0, 2]], old[[0, 2]])
    assert moved.tolist() == [False, True, False, True, True]
    for j in (1, 3, 4):
        assert not (centres[j] == old[j]).all()
        assert centres[j] @ old[1] > 0.999
    assert len(np.unique(centres, axis=0)) == 5
    only_copies = np.zeros(5)
    untouched = centres.copy()
    assert repair_empty(centres, sums.size, only_copies, [0, 1], moved) == 2
    np.testing.assert_array_equal(centres, untouched)


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


def test_random_rows_depend_on_seed_and_n_only(tmp_path: Path) -> None:
    vectors = builders.unit_vectors(1000, 8)
    one = Rows(open_all(files_of(tmp_path / "a", vectors)), 1000)
    many = Rows(open_all(files_of(tmp_path / "b", vectors, 6)), 13)
    first = initial.random_rows(one, 50, 7)
    np.testing.assert_array_equal(first, initial.random_rows(many, 50, 7))
    assert len(np.unique(first, axis=0)) == 50
    assert (first != initial.random_rows(one, 50, 8)).any()


def test_kmeans_plus_plus_draws_by_squared_distance() -> None:
    # Three groups of copies: after a first row, the next is drawn by distance to it.
    points = np.repeat(unit(np.array([[1.0, 0, 0], [0.8, 0.6, 0], [0, 0, 1]])), [5, 10, 5], axis=0)
    points = points.astype(np.float32)
    pairs = np.zeros((3, 3))
    for seed in range(3000):
        first, second = initial.choose(points, 2, np.random.default_rng(seed))
        pairs[
            np.searchsorted([5, 15], first, "right"), np.searchsorted([5, 15], second, "right")
        ] += 1
    share = np.array([5, 10, 5]) / 20
    distance = 1 - points[[0, 5, 15]] @ points[[0, 5, 15]].T.astype(float)
    weight = distance * [5, 10, 5]
    expected = share[:, None] * weight / weight.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(pairs / 3000, expected, atol=0.035)


def test_kmeans_plus_plus_equals_the_plain_distances_and_spreads() -> None:
    points = builders.unit_vectors(2000, 16, groups=40, seed=2)
    chosen = initial.choose(points, 120, np.random.default_rng(0))
    assert len(set(chosen.tolist())) == 120
    spread = (points @ points[chosen].T).max(axis=1).mean()
    random = np.random.default_rng(0).choice(2000, 120, replace=False)
    assert spread > (points @ points[random].T).max(axis=1).mean()


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
    centres, sizes, objective = plain_lloyd(
        unit(vectors.astype(float)),
        vectors[np.random.default_rng(0).choice(200, 6, replace=False, shuffle=False)],
        3,
    )
    np.testing.assert_array_equal(result.sizes, sizes)
    np.testing.assert_allclose(result.array, centres, atol=1e-6)
    np.testing.assert_allclose(result.objective, objective, atol=1e-7)


def test_kmeans_plus_plus_never_samples_less_than_asked(tmp_path: Path) -> None:
    from mlcd.errors import UserError

    rows = Rows(open_all(files_of(tmp_path, builders.unit_vectors(100, 8))), 100)
    for init in ("kmeans++", "afkmc2"):
        with pytest.raises(UserError, match=rf"cluster\.init: {re.escape(init)} holds 80 rows"):
            initial.from_sample(rows, Cluster(k=4, init=init, init_sample=20), room=100)


def test_chains_tend_to_the_draws_of_kmeans_plus_plus() -> None:
    # The case of test_kmeans_plus_plus_draws_by_squared_distance, where the second draw is known.
    points = np.repeat(unit(np.array([[1.0, 0, 0], [0.8, 0.6, 0], [0, 0, 1]])), [5, 10, 5], axis=0)
    points = points.astype(np.float32)
    pairs = np.zeros((3, 3))
    for seed in range(2000):
        chosen = initial.choose_by_chains(points, 2, 40, np.random.default_rng(seed))
        pairs[tuple(np.searchsorted([5, 15], chosen, "right"))] += 1
    distance = 1 - points[[0, 5, 15]] @ points[[0, 5, 15]].T.astype(float)
    weight = distance * [5, 10, 5]
    expected = np.array([5, 10, 5])[:, None] / 20 * weight / weight.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(pairs / 2000, expected, atol=0.035)


def test_chains_follow_what_those_before_them_chose() -> None:
    # Groups of copies: 64 chains are drawn at once, and none may choose a group again.
    points = np.repeat(builders.unit_vectors(300, 32), 7, axis=0)
    chosen = initial.choose_by_chains(points, 300, 50, np.random.default_rng(0))
    assert len(np.unique(chosen)) == 300
    assert len(np.unique(chosen // 7)) > 290
    random = np.random.default_rng(0).choice(2100, 300, replace=False)
    assert len(np.unique(random // 7)) < 230


def test_given_centres_are_where_it_starts(tmp_path: Path) -> None:
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
    ("centres", "words"),
    [
        (None, "no such file"),
        (np.ones((3, 8), np.float32), "expected a dataset 'centroid' [4, 8]"),
        (np.ones((4, 9), np.float32), "expected a dataset 'centroid' [4, 8]"),
        (np.ones((4, 8)), "found float64 [4, 8]"),
        (np.float32([[1] * 8] * 3 + [[0] * 8]), "centre 3 is zero"),
        (np.float32([[1] * 8] * 3 + [[np.nan] * 8]), "centre 3 is zero or not finite"),
        ("a group", "expected a dataset 'centroid' [4, 8]"),
    ],
)
def test_unfitting_given_centres_are_refused(tmp_path: Path, capsys, centres, words) -> None:
    files = files_of(tmp_path, builders.unit_vectors(20, 8))
    path = tmp_path / "given.h5"
    if centres is not None:
        with h5py.File(path, "w") as file:
            if isinstance(centres, str):
                file.create_group("centroid")
            else:
                file["centroid"] = centres
    assert run(files, tmp_path / "c.h5", "--k", 4, "--initial", path) == 2
    refused(capsys, f"{path}: ", words)


def test_kmeans_plus_plus_takes_no_copy_while_others_are_left() -> None:
    # Copies of a chosen row have distance 0, also when both were drawn in one batch.
    points = np.repeat(builders.unit_vectors(60, 32), 7, axis=0)
    for seed in range(5):
        chosen = initial.choose(points, 60, np.random.default_rng(seed))
        assert sorted(chosen // 7) == list(range(60))


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
