"""Stage label, held to plain float64 versions."""

from __future__ import annotations

import json
from pathlib import Path

import h5py
import numpy as np
import pytest

from helpers import builders
from helpers.builders import unit
from helpers.label_runs import pair, plain_top, run, summary_of
from helpers.memory import many_rows, peak_memory
from helpers.refusals import refused
from mlcd import cli
from mlcd.data import hdf5
from mlcd.data.centroids import Centroids
from mlcd.data.labels import Labels
from mlcd.neighbors import memory


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
    assert labels.embeddings == hdf5.fingerprint(embeddings)
    assert labels.centroids == hdf5.fingerprint(centroids)
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
        (
            ["--threads", 1],
            ["--threads", 2],
            ["--memory-limit", "4GiB"],
            *(["--products", kind, "--device", "cpu"] for kind in ("float16", "bfloat16")),
        )
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
    assert not keep[:, 0].all(), "some rows must have no center over the threshold"
    keep[:, 0] = True
    np.testing.assert_array_equal(near.label(), np.where(keep, ids, -1))
    np.testing.assert_array_equal(near.similarity() == 0, ~keep)
    numbers = np.bincount((near.label() >= 0).sum(axis=1))
    assert (numbers > 0).sum() > 2
    assert run(*words, tmp_path / "s.h5", "--threshold", "none") == 0
    assert (tmp_path / "s.h5").read_bytes() == (tmp_path / "all.h5").read_bytes()


def test_chunk_without_images_has_no_labels(tmp_path: Path) -> None:
    _, centroids = pair(tmp_path)
    empty = builders.embeddings_file(tmp_path / "empty.h5", np.zeros((0, 24)))
    output = tmp_path / "l.h5"
    assert run("--embeddings", empty, "--centroids", centroids, "--top", 4, "--output", output) == 0
    assert Labels(output).label().shape == (0, 4)


def test_foreign_float32_rows_are_normalized(tmp_path: Path) -> None:
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
        (embeddings, centroids, ["--top", 61], ["label.top", "only 60 centers"]),
        (embeddings, cut, [], [str(cut), "not a whole HDF5"]),
        (embeddings, long, [], [f"{long}: center 0 is not a unit vector"]),
        (embeddings, embeddings, [], [str(embeddings), "expected a file of centroids"]),
        (tmp_path / "none.h5", centroids, [], ["none.h5: no such file"]),
        (embeddings, centroids, ["--memory-limit", "9MB"], ["--memory-limit", "too little"]),
        (embeddings, centroids, ["--threshold", 2], ["label.threshold", "at most 1"]),
    ]
    for rows_file, centers_file, options, words in cases:
        output = tmp_path / "l.h5"
        assert run("--embeddings", rows_file, "--centroids", centers_file, "--output", output,
                   *options) == 2  # fmt: skip
        refused(capsys, *words)
        assert not output.exists()


def test_labels_out_of_range_are_refused(tmp_path: Path, capsys) -> None:
    embeddings, centroids = pair(tmp_path, k=5)
    bad = builders.labels_file(tmp_path / "l.h5", np.array([[0, 5]]), 5, embeddings)
    assert run("--summarize", bad, "--centroids", centroids, "--output", tmp_path / "s.json") == 2
    refused(capsys, f"{bad}: a label lies outside 0 … 4")


def loose(folder: Path, n: int) -> tuple[Path, Path]:
    """Write embeddings and 300 centers that lie in no groups, so that few groups are too few."""
    rows = builders.unit_vectors(n, 12, seed=1)
    embeddings = builders.embeddings_file(folder / "a-00000.h5", rows)
    centers = builders.unit_vectors(300, 12, seed=2)
    return embeddings, builders.centroids_file(folder / "c.h5", centers)


def test_two_level_labels_and_their_agreement(tmp_path: Path) -> None:
    embeddings, centroids = loose(tmp_path, 1500)
    words = ["--embeddings", embeddings, "--centroids", centroids, "--top", 4, "--output"]
    assert run(*words, tmp_path / "exact.h5") == 0
    two_level = ["--mode", "two_level", "--probes", 6, "--min-agreement", 0.5]
    for name, options in {"a": ["--threads", 2], "b": ["--memory-limit", "4GiB"]}.items():
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


def test_low_agreement_is_refused_and_the_fix_works(tmp_path: Path, capsys) -> None:
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


def test_a_limit_too_small_is_told_without_the_centers(tmp_path: Path, capsys) -> None:
    # 128 MiB of centers, which the limit does not count. It counts what the search holds, which is
    # as much: shortened centers, or a copy of them.
    embeddings = builders.embeddings_file(tmp_path / "e.h5", builders.unit_vectors(300, 512))
    centers = unit(np.random.default_rng(0).standard_normal((65_536, 512), np.float32))
    centroids = builders.centroids_file(tmp_path / "c.h5", centers)
    words = ["--embeddings", embeddings, "--centroids", centroids, "--output", tmp_path / "l.h5"]
    before, least = memory.resident() >> 20, []
    for options in ([], ["--mode", "two_level"], ["--mode", "two_level", "--probes", 9999]):
        assert run(*words, *options, "--memory-limit", "9MiB") == 2
        said = capsys.readouterr().err
        assert "--memory-limit: 9.0 MiB is too little here; at least " in said
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
        centers = tmp_path / name / "c.h5"
        assert cli.main(["cluster", *words, str(centers), "--k", "40", "--iterations", "3"]) == 0
        output = tmp_path / name / "l.h5"
        assert run(*words, output, "--centroids", centers, "--top", 8) == 0
        labels = Labels(output)
        assert (labels.n, labels.l, labels.num_classes, labels.chunk) == (400, 8, 40, name)
        assert summary_of(tmp_path, output, centroids=centers)["images"] == 400


def test_peak_memory_stays_within_the_limit(tmp_path: Path) -> None:
    embeddings = many_rows(tmp_path / "e.h5")
    vectors = builders.unit_vectors(64, 512)
    centroids = builders.centroids_file(tmp_path / "c.h5", vectors, model="")
    words = ["label", "--embeddings", embeddings, "--centroids", centroids]
    words += ["--output", tmp_path / "l.h5", "--memory-limit", "400MiB", "--threads", 1]
    assert peak_memory(*words) <= 400 << 20
