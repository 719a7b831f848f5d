"""Stage label and the exact search, held to plain float64 versions."""

from __future__ import annotations

import json
from pathlib import Path

import builders
import h5py
import numpy as np
import pytest
from memory import many_rows, peak_memory

from mlcd import cli
from mlcd.neighbours import memory
from mlcd.stores import h5
from mlcd.stores.centroids import Centroids
from mlcd.stores.labels import Labels


def run(*words: object) -> int:
    return cli.main(["label", *map(str, words)])


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> None:
    """Check that the last run said one line on stderr with all `words`, and no traceback."""
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert sum(all(word in line for word in words) for line in said.splitlines()) == 1, said


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def plain_top(rows: np.ndarray, centres: np.ndarray, l: int) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and similarities of the `l` nearest in float64, ties by lower id."""
    scores = rows.astype(float) @ centres.astype(float).T
    # The last bits of a product depend on its shape; true ties differ by less than this.
    ids = np.argsort(-np.round(scores, 13), axis=1, kind="stable")[:, :l]
    return ids, np.take_along_axis(scores, ids, axis=1)


def pair(folder: Path, n: int = 500, k: int = 60, d: int = 24) -> tuple[Path, Path]:
    """Write embeddings and centroids with planted groups."""
    rows = builders.unit_vectors(n, d, groups=15, seed=1)
    embeddings = builders.embeddings_file(folder / "a-00000.h5", rows)
    centres = unit(rows[:k] + 0.02 * builders.unit_vectors(k, d, seed=2))
    return embeddings, builders.centroids_file(folder / "c.h5", centres)


@pytest.mark.parametrize("l", [1, 3, 59, 60])
def test_equals_plain_top_l(tmp_path: Path, l: int) -> None:
    embeddings, centroids = pair(tmp_path)
    assert run("--embeddings", embeddings, "--centroids", centroids, "--top", l,
               "--output", tmp_path / "l.h5") == 0  # fmt: skip
    rows = unit(h5py.File(embeddings)["embedding"][:].astype(float)).astype(np.float32)
    ids, similarity = plain_top(rows, Centroids(centroids).array, l)
    labels = Labels(tmp_path / "l.h5")
    np.testing.assert_array_equal(labels.label(), ids)
    np.testing.assert_array_equal(labels.similarity(), similarity.astype(np.float16))
    assert labels.label().dtype == np.int32
    assert (labels.chunk, labels.num_classes, labels.n, labels.l) == ("a-00000", 60, 500, l)
    assert labels.embeddings == h5.fingerprint(embeddings)
    assert labels.centroids == h5.fingerprint(centroids)
    assert json.loads(labels.section)["top"] == l
    assert (labels.agreement, labels.agreement_rows) == (1, 0)
    if l == 60:
        assert (labels.gap() == -1).all()
    else:
        _, wider = plain_top(rows, Centroids(centroids).array, l + 1)
        gap = (wider[:, l - 1] - wider[:, l]).astype(np.float16)
        np.testing.assert_allclose(labels.gap(), gap, atol=1e-6)


def test_same_bytes_for_any_limit_and_threads(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    vectors = builders.unit_vectors(40_000, 16, groups=300)
    vectors[rng.integers(0, 40_000, 5000)] = vectors[7]
    embeddings = builders.embeddings_file(tmp_path / "e.h5", vectors)
    centroids = builders.centroids_file(tmp_path / "c.h5", vectors[::400])
    results = set()
    for index, options in enumerate(
        (["--threads", 1], ["--threads", 2], ["--memory-limit", "1GiB"])
    ):
        output = tmp_path / f"l{index}.h5"
        assert run("--embeddings", embeddings, "--centroids", centroids, "--top", 5,
                   "--output", output, *options) == 0  # fmt: skip
        results.add(output.read_bytes())
    assert len(results) == 1


def test_blocks_of_files_larger_than_one_block(tmp_path: Path, monkeypatch) -> None:
    embeddings, centroids = pair(tmp_path)
    words = ["--embeddings", embeddings, "--centroids", centroids, "--top", 4, "--output"]
    assert run(*words, tmp_path / "one.h5") == 0
    monkeypatch.setattr(memory, "_LEAST_ROWS", 37)
    monkeypatch.setattr(memory, "_MOST_ROWS", 37)
    assert run(*words, tmp_path / "many.h5") == 0
    assert (tmp_path / "one.h5").read_bytes() == (tmp_path / "many.h5").read_bytes()


def test_threshold_keeps_the_nearest_and_pads(tmp_path: Path) -> None:
    embeddings, centroids = pair(tmp_path)
    words = ["--embeddings", embeddings, "--centroids", centroids, "--top", 6, "--output"]
    assert run(*words, tmp_path / "all.h5") == 0
    assert run(*words, tmp_path / "near.h5", "--threshold", 0.9) == 0
    rows = unit(h5py.File(embeddings)["embedding"][:].astype(float)).astype(np.float32)
    ids, similarity = plain_top(rows, Centroids(centroids).array, 6)
    near = Labels(tmp_path / "near.h5")
    keep = similarity >= 0.9
    assert not keep[:, 0].all(), "some rows must have no centre over the threshold"
    keep[:, 0] = True
    np.testing.assert_array_equal(near.label(), np.where(keep, ids, -1))
    np.testing.assert_array_equal(near.similarity() == 0, ~keep)
    numbers = np.bincount((near.label() >= 0).sum(axis=1))
    assert (numbers > 0).sum() > 2
    assert run(*words, tmp_path / "s.h5", "--threshold", "none") == 0
    assert (tmp_path / "s.h5").read_bytes() == (tmp_path / "all.h5").read_bytes()


def test_chunk_without_pictures_has_no_labels(tmp_path: Path) -> None:
    _, centroids = pair(tmp_path)
    empty = builders.embeddings_file(tmp_path / "empty.h5", np.zeros((0, 24)))
    output = tmp_path / "l.h5"
    assert run("--embeddings", empty, "--centroids", centroids, "--top", 4, "--output", output) == 0
    assert Labels(output).label().shape == (0, 4)


def test_foreign_float32_rows_are_normalised(tmp_path: Path) -> None:
    _, centroids = pair(tmp_path)
    rows = builders.unit_vectors(50, 24, seed=9)
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["embedding"] = rows * np.arange(1, 51, dtype=np.float32)[:, None]
    output = tmp_path / "l.h5"
    assert run("--embeddings", tmp_path / "f.h5", "--centroids", centroids, "--output", output) == 0
    ids, similarity = plain_top(rows, Centroids(centroids).array, 4)
    np.testing.assert_array_equal(Labels(output).label(), ids)
    np.testing.assert_allclose(Labels(output).similarity(), similarity, atol=1e-3)
    assert Labels(output).chunk == "f"


def test_unfitting_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    embeddings, centroids = pair(tmp_path)
    rows = builders.unit_vectors(50, 24)
    wide = builders.embeddings_file(tmp_path / "wide.h5", builders.unit_vectors(50, 25))
    other = builders.embeddings_file(tmp_path / "other.h5", rows, model="another")
    rows[33] = 0
    zero = builders.embeddings_file(tmp_path / "zero.h5", rows)
    cut = tmp_path / "cut.h5"
    cut.write_bytes(centroids.read_bytes()[:-3000])
    long = builders.centroids_file(tmp_path / "long.h5", 2 * builders.unit_vectors(9, 24))
    cases = [
        (wide, centroids, [], [str(wide), "25 dimensions", str(centroids)]),
        (other, centroids, [], [str(other), "another model"]),
        (zero, centroids, [], [f"{zero}: row 33", "all zeros"]),
        (embeddings, centroids, ["--top", 61], ["label.top", "only 60 centres"]),
        (embeddings, cut, [], [str(cut), "not a whole HDF5"]),
        (embeddings, long, [], [f"{long}: centre 0 is not a unit vector"]),
        (embeddings, embeddings, [], [str(embeddings), "expected a file of centroids"]),
        (tmp_path / "none.h5", centroids, [], ["none.h5: no such file"]),
        (embeddings, centroids, ["--memory-limit", "9MB"], ["--memory-limit", "too little"]),
        (embeddings, centroids, ["--threshold", 2], ["label.threshold", "at most 1"]),
    ]
    for rows_file, centres_file, options, words in cases:
        output = tmp_path / "l.h5"
        assert run("--embeddings", rows_file, "--centroids", centres_file, "--output", output,
                   *options) == 2  # fmt: skip
        refused(capsys, *words)
        assert not output.exists()


def test_labels_out_of_range_are_refused(tmp_path: Path, capsys) -> None:
    embeddings, centroids = pair(tmp_path, k=5)
    bad = builders.labels_file(tmp_path / "l.h5", np.array([[0, 5]]), 5, embeddings)
    assert run("--summarise", bad, "--centroids", centroids, "--output", tmp_path / "s.json") == 2
    refused(capsys, f"{bad}: a label lies outside 0 … 4")


def summary_of(tmp_path: Path, *files: Path, centroids: Path) -> dict:
    output = tmp_path / "summary.json"
    assert run("--summarise", *files, "--centroids", centroids, "--output", output) == 0
    return json.loads(output.read_text())


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
    assert summary["pictures"] == 53
    assert (summary["num_classes"], summary["labels_a_picture"]) == (40, 3)
    assert summary["pictures_by_number_of_labels"] == {"1": 1, "2": 1, "3": 51}
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
    assert summary["near_duplicate_centres"]["centres"] == 0


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


def test_summary_finds_near_duplicate_centres(tmp_path: Path) -> None:
    centres = builders.unit_vectors(30, 24)
    centres[20] = unit(centres[4:5] + 0.001 * builders.unit_vectors(1, 24, seed=1))[0]
    centres[[25, 26, 27]] = centres[6]
    centroids = builders.centroids_file(tmp_path / "c.h5", centres)
    embeddings = builders.embeddings_file(tmp_path / "e.h5", centres)
    labels = builders.labels_file(tmp_path / "l.h5", np.zeros((30, 2)), 30, embeddings)
    found = summary_of(tmp_path, labels, centroids=centroids)["near_duplicate_centres"]
    assert found["centres"] == 6
    assert found["search"] == "exact"
    pairs = {centre: other for centre, other, _ in found["nearest"]}
    assert pairs == {4: 20, 20: 4, 6: 25, 25: 6, 26: 6, 27: 6}
    assert all(cosine > 0.999 for _, _, cosine in found["nearest"])


def test_near_duplicates_of_many_centres_are_found_by_groups(tmp_path: Path, monkeypatch) -> None:
    rng = np.random.default_rng(0)
    centres = np.repeat(builders.unit_vectors(300, 24), 2, axis=0)[rng.permutation(600)]
    centres[:400] = builders.unit_vectors(400, 24, seed=1)
    centroids = builders.centroids_file(tmp_path / "c.h5", centres)
    embeddings = builders.embeddings_file(tmp_path / "e.h5", centres)
    labels = builders.labels_file(tmp_path / "l.h5", np.zeros((60, 2)), 600, embeddings)
    exact = summary_of(tmp_path, labels, centroids=centroids)["near_duplicate_centres"]
    monkeypatch.setattr("mlcd.label.summary.EXACT_UP_TO", 20)
    found = summary_of(tmp_path, labels, centroids=centroids)["near_duplicate_centres"]
    assert exact["centres"] > 50
    assert found == {**exact, "search": "two_level"}


def loose(folder: Path, n: int) -> tuple[Path, Path]:
    """Write embeddings and 300 centres that lie in no groups, so that few groups are too few."""
    rows = builders.unit_vectors(n, 12, seed=1)
    embeddings = builders.embeddings_file(folder / "a-00000.h5", rows)
    centres = builders.unit_vectors(300, 12, seed=2)
    return embeddings, builders.centroids_file(folder / "c.h5", centres)


def test_two_level_labels_and_their_agreement(tmp_path: Path) -> None:
    embeddings, centroids = loose(tmp_path, 1500)
    words = ["--embeddings", embeddings, "--centroids", centroids, "--top", 4, "--output"]
    assert run(*words, tmp_path / "exact.h5") == 0
    two_level = ["--mode", "two_level", "--probes", 6, "--min-agreement", 0.5]
    for name, options in {"a": ["--threads", 2], "b": ["--memory-limit", "1GiB"]}.items():
        assert run(*words, tmp_path / f"{name}.h5", *two_level, *options) == 0
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()
    found, exact = Labels(tmp_path / "a.h5"), Labels(tmp_path / "exact.h5")
    sample = np.linspace(0, 1499, 1024).astype(int)
    pairs = zip(found.label()[sample], exact.label()[sample], strict=True)
    share = np.mean([len(set(a) & set(b)) / 4 for a, b in pairs])
    assert (found.agreement, found.agreement_rows) == (pytest.approx(share), 1024)
    assert 0.6 < share < 1
    same = (found.label() == exact.label()).all(axis=1)
    np.testing.assert_array_equal(found.similarity()[same], exact.similarity()[same])
    summary = summary_of(tmp_path, tmp_path / "a.h5", centroids=centroids)["search"]
    assert summary == {
        "mode": "two_level", "probes": 6, "rows": 1024, "agreement": pytest.approx(share),
        "least_agreement_of_a_chunk": pytest.approx(share),
    }  # fmt: skip


def test_low_agreement_is_refused_and_the_mend_works(tmp_path: Path, capsys) -> None:
    embeddings, centroids = loose(tmp_path, 800)
    output = tmp_path / "l.h5"
    words = ["--embeddings", embeddings, "--centroids", centroids, "--output", output]
    words += ["--mode", "two_level"]
    assert run(*words, "--probes", 1) == 2
    said = capsys.readouterr().err
    assert "label.min_agreement: with label.probes 1 only 0." in said
    assert f"{embeddings} are found, less than 0.99; set label.probes to " in said
    assert not output.exists()
    enough = said.split("set label.probes to ")[1].split(",")[0]
    assert run(*words, "--probes", enough) == 0
    assert Labels(output).agreement >= 0.99
    assert run(*words, "--probes", 1, "--min-agreement", 1, "--groups", 3) == 2
    refused(capsys, "label.min_agreement", "set label.mode to exact")


def test_keys_without_effect_leave_labels_as_they_are(tmp_path: Path) -> None:
    embeddings, centroids = loose(tmp_path, 300)
    words = ["--embeddings", embeddings, "--centroids", centroids, "--output"]
    two_level = ["--mode", "two_level", "--min-agreement"]
    for name, options in {
        "plain": [],
        "idle": ["--groups", 7, "--probes", 2, "--min-agreement", 0.5],
        "strict": [*two_level, 0.5],
        "mild": [*two_level, 0.1],
        "other": [*two_level, 0.1, "--probes", 5],
    }.items():
        assert run(*words, tmp_path / f"{name}.h5", *options) == 0
    plain, idle, strict, mild, other = (
        (tmp_path / f"{name}.h5").read_bytes()
        for name in ("plain", "idle", "strict", "mild", "other")
    )
    assert plain == idle and strict == mild != other


def test_a_limit_too_small_is_told_without_the_centres(tmp_path: Path, capsys) -> None:
    # 128 MiB of centres, which the limit does not count. It counts what the search holds, which is
    # as much: shortened centres, or a copy of them.
    embeddings = builders.embeddings_file(tmp_path / "e.h5", builders.unit_vectors(300, 512))
    centres = unit(np.random.default_rng(0).standard_normal((65_536, 512), np.float32))
    centroids = builders.centroids_file(tmp_path / "c.h5", centres)
    words = ["--embeddings", embeddings, "--centroids", centroids, "--output", tmp_path / "l.h5"]
    before, least = memory.resident() >> 20, []
    for options in ([], ["--mode", "two_level"], ["--mode", "two_level", "--probes", 9999]):
        assert run(*words, *options, "--memory-limit", "9MiB") == 2
        said = capsys.readouterr().err
        assert "--memory-limit: 9 MiB is too little here; at least " in said
        least.append(int(said.split("at least ")[1].split()[0]))
    exact, two_level, every = least
    assert 128 < exact - before < 170
    assert abs(two_level - exact) < 30
    # More probes than groups are all groups.
    candidates = 256 * (4 + 1 + 3)
    assert every - two_level < 256 * 48 * (candidates + 4) / 2**20


def test_any_h5_with_embeddings_is_enough(tmp_path: Path) -> None:
    # No attributes, no keys: what anybody's script writes.
    vectors = builders.unit_vectors(400, 24, groups=15)
    for name, kind in (("half", np.float16), ("single", np.float32)):
        with h5py.File(tmp_path / f"{name}.h5", "w") as file:
            file["embedding"] = vectors.astype(kind)
        words = ["--embeddings", str(tmp_path / f"{name}.h5"), "--output"]
        centres = tmp_path / name / "c.h5"
        assert cli.main(["cluster", *words, str(centres), "--k", "40", "--iterations", "3"]) == 0
        output = tmp_path / name / "l.h5"
        assert run(*words, output, "--centroids", centres, "--top", 8) == 0
        labels = Labels(output)
        assert (labels.n, labels.l, labels.num_classes, labels.chunk) == (400, 8, 40, name)
        assert summary_of(tmp_path, output, centroids=centres)["pictures"] == 400


def test_summary_refuses_labels_of_other_centroids(tmp_path: Path, capsys) -> None:
    embeddings, centroids = pair(tmp_path)
    run("--embeddings", embeddings, "--centroids", centroids, "--output", tmp_path / "l.h5")
    changed = Centroids(centroids).array[::-1]
    builders.centroids_file(tmp_path / "c2.h5", changed)
    builders.centroids_file(tmp_path / "c3.h5", changed[:9])
    short = builders.labels_file(tmp_path / "s.h5", np.zeros((5, 2)), 60, embeddings)
    for files, centres, words in [
        (["l.h5"], "c2.h5", ["l.h5: made with other centroids"]),
        (["l.h5"], "c3.h5", ["l.h5: labels of 60 classes", "has 9"]),
        (["l.h5", short.name], "c.h5", ["s.h5: 2 labels a picture", "has 4"]),
    ]:
        paths = [tmp_path / name for name in files]
        output = tmp_path / "s.json"
        assert (
            run("--summarise", *paths, "--centroids", tmp_path / centres, "--output", output) == 2
        )
        refused(capsys, *words)


def test_peak_memory_stays_within_the_limit(tmp_path: Path) -> None:
    embeddings = many_rows(tmp_path / "e.h5")
    vectors = builders.unit_vectors(64, 512)
    centroids = builders.centroids_file(tmp_path / "c.h5", vectors, model="")
    with h5py.File(centroids, "r+") as file:
        file.attrs["model"] = ""
    words = ["label", "--embeddings", embeddings, "--centroids", centroids]
    words += ["--output", tmp_path / "l.h5", "--memory-limit", "400MiB", "--threads", 1]
    assert peak_memory(*words) <= 400 << 20
