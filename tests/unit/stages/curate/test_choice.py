"""Which images are kept: as the plain version says, at any width and after any interruption."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from helpers.builders import unit, unit_vectors
from helpers.curate_runs import Run, plain_groups, run, stands_for, unit_rows, whole
from helpers.refusals import refused
from mlcd import cli
from mlcd.data.curation import Curation, Facts
from mlcd.stages.curate import duplicates

#: Passes of so many rows, slowly, each told of; it stands in the place of a small memory limit.
SLOW = """
import sys, time
from mlcd import cli
from mlcd.stages.curate import duplicates
duplicates.capacity = lambda limit, d: 400
write = duplicates.Parts.write
def slow(*arguments):
    write(*arguments)
    print("saved", flush=True)
    time.sleep(0.2)
duplicates.Parts.write = slow
raise SystemExit(cli.main(sys.argv[1:]))
"""


def planted(kind: str) -> np.ndarray:
    """Return float32 unit rows [240, 16] with near-duplicates of a kind."""
    rng = np.random.default_rng(4)
    rows = unit_vectors(240, 16, groups=12, seed=2)
    if kind == "copies":
        rows[rng.integers(0, 240, 90)] = rows[5]
        rows[rng.integers(0, 240, 20)] = rows[9]
    elif kind == "near":
        of = rng.integers(0, 240, 100)
        rows[of] = unit(rows[rng.integers(0, 240, 100)] + 0.03 * unit_vectors(100, 16, seed=3))
    elif kind == "chains":
        angle = np.linspace(0, 3, 240)
        rows[:] = 0
        rows[:, 0], rows[:, 1] = np.cos(angle), np.sin(angle)
        rows += 0.002 * unit_vectors(240, 16, seed=5)
    rows = unit(rows).astype(np.float32)
    return rows[rng.permutation(240)]


@pytest.mark.parametrize("kind", ["copies", "near", "chains", "none"])
def test_equals_the_plain_union_find(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Products of few rows, so that there are many.
    monkeypatch.setattr(duplicates, "_TILE", 13)
    made = Run(tmp_path, planted(kind), clusters=7, probes=2)
    facts = [Facts(path) for path in made.facts()]
    clusters = np.concatenate([one.cluster() for one in facts])
    rows = unit_rows(made.embeddings)
    sizes = []
    for threshold in (0.9, 0.99, 0.9999):
        found = made.choose("--duplicate-similarity", threshold)
        groups = plain_groups(rows, clusters, threshold)
        expected = np.full(len(rows), -1)
        for group in groups:
            # All images of the tests have one size: the first is kept.
            expected[group[1:]] = group[0]
        np.testing.assert_array_equal(stands_for(found), expected)
        np.testing.assert_array_equal(whole(found, "kept"), expected < 0)
        out = np.flatnonzero(expected >= 0)
        cosine = (rows[out] * rows[expected[out]]).sum(axis=1)
        np.testing.assert_allclose(whole(found, "similarity")[out], cosine, atol=1e-6)
        summary = json.loads((made.out / "summary.json").read_text())
        assert summary["duplicates"]["groups"] == len(groups)
        assert summary["duplicates"]["largest"] == max(map(len, groups), default=0)
        assert summary["left_out"] == {"duplicate": len(out), "balance": 0, "cap": 0}
        sizes.append(len(out))
    assert sizes[0] > 0 and sizes == sorted(sizes, reverse=True)
    assert (sizes[2] > 0) == (kind in ("copies", "chains"))


def test_two_rows_of_far_clusters_are_no_pair_with_few_probes(tmp_path: Path) -> None:
    rows = planted("chains")
    kept = []
    for probes in (1, 7):
        made = Run(tmp_path / str(probes), rows, clusters=7, probes=probes)
        made.facts()
        kept.append(int(whole(made.choose(), "kept").sum()))
    # One chain, which borders of clusters cut.
    assert kept[0] > kept[1] == 1


def test_the_most_pixels_are_kept_then_the_first() -> None:
    from mlcd.stages.curate.groups import keepers, stars

    pixels = np.array([9, 9, 16, 4, 16, 1])
    out, best = keepers(*stars(np.array([4, 1, 5]), np.array([2, 4, 3])), pixels)
    assert dict(zip(out.tolist(), best.tolist(), strict=True)) == {1: 2, 4: 2, 5: 3}


def test_same_bytes_at_any_threads_limit_and_passes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = Run(tmp_path, planted("near"), clusters=9, duplicate_similarity=0.95, cluster_cap=20)
    made.facts()
    results = set()
    for index, (room, tile, threads) in enumerate([(9999, 2048, 1), (9999, 9, 2), (400, 50, 2)]):
        monkeypatch.setattr(duplicates, "capacity", lambda limit, d, room=room: room)
        monkeypatch.setattr(duplicates, "_TILE", tile)
        out = tmp_path / f"out-{index}"
        made.choose("--threads", threads, output=out)
        results.add(tuple(path.read_bytes() for path in sorted(out.rglob("*.h5"))))
        results.add((out / "summary.json").read_bytes())
    assert len(results) == 2


@pytest.mark.parametrize("limit", ["1kB", "1MB"])
def test_the_memory_that_is_asked_for_is_enough(tmp_path: Path, capsys, limit: str) -> None:
    made = Run(tmp_path, planted("near"), clusters=9)
    facts = made.facts()
    words = [
        "--embeddings",
        *made.embeddings,
        "--facts",
        *facts,
        "--output",
        made.out,
        *made.options,
    ]
    assert run("choice", *words, "--memory-limit", limit) == 2
    (asked,) = re.findall(r"need (\d+) MiB in all; raise it", capsys.readouterr().err)
    # This process may have grown meanwhile.
    made.choose("--memory-limit", f"{int(asked) + 16}MiB")


def test_killed_choice_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    made = Run(tmp_path, planted("near"), clusters=9, duplicate_similarity=0.95)
    facts = made.facts()
    made.choose()
    cut = tmp_path / "cut"
    words = ["curate", "--part", "choice", "--embeddings", *made.embeddings, "--facts", *facts]
    words += ["--output", cut, *made.options]
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-c", SLOW, *map(str, words)],
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
            env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])},
        )  # fmt: skip
        assert process.stdout.readline().startswith("saved")
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    saved = sorted((cut / "state").glob("summary-*/clusters-*.h5"))
    assert len(saved) == 2
    saved[1].write_bytes(b"damaged")
    made.choose(output=cut)
    for path in sorted([*made.out.glob("rows/*"), made.out / "summary.json"]):
        assert (cut / path.relative_to(made.out)).read_bytes() == path.read_bytes()
    assert not list((cut / "state").iterdir())


def test_cap_and_balance_leave_out_by_a_seeded_hash(tmp_path: Path) -> None:
    rows = planted("none")
    for name, keys in {
        "cap": {"cluster_cap": 10}, "sqrt": {"balance": "sqrt"}, "mean": {"balance": "mean"},
    }.items():  # fmt: skip
        made = Run(tmp_path / name, rows, clusters=7, duplicate_similarity="null", **keys)
        made.facts()
        found = made.choose()
        cluster, kept = whole(found, "cluster"), whole(found, "kept")
        sizes = np.bincount(cluster, minlength=7)
        mean = -(-len(rows) // 7)
        expected = {
            "cap": np.minimum(sizes, 10),
            "sqrt": np.where(sizes > mean, np.ceil(np.sqrt(sizes * mean)), sizes),
            "mean": np.minimum(sizes, mean),
        }[name]
        np.testing.assert_array_equal(np.bincount(cluster[kept], minlength=7), expected)
        assert not kept.all()
        reasons = np.array(found[0].reasons)[whole(found, "reason")[~kept]]
        assert set(reasons) == {"cap" if name == "cap" else "balance"}
        others = made.choose("--seed", 1, output=tmp_path / name / "other")
        assert (whole(others, "kept") != kept).any()
        assert (stands_for(found) == -1).all()


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path, capsys) -> None:
    made = Run(tmp_path, planted("near"))
    facts = made.facts()
    words = ["--facts", facts[1], facts[0], "--output", tmp_path / "o"]
    assert run("choice", "--embeddings", *made.embeddings[:2], *words) == 2
    refused(capsys, f"{facts[1]}: made from other embeddings than {made.embeddings[0]}")
    made.facts("--probes", 1)
    assert run("facts", "--embeddings", made.embeddings[0], "--images", made.images[0],
               "--centroids", made.centroids, "--output", facts[0]) == 0  # fmt: skip
    words = ["--embeddings", *made.embeddings, "--facts", *facts, "--output", tmp_path / "o"]
    assert run("choice", *words) == 2
    refused(capsys, f"{facts[1]}: made with other coarse centers or another section")
    facts = made.facts()
    assert run("choice", *words, "--memory-limit", "64MiB") == 2
    refused(capsys, "--memory-limit: a coarse cluster has", "raise curate.clusters")
    assert run("facts", "--embeddings", made.embeddings[0], "--images", made.images[1],
               "--centroids", made.centroids, "--output", tmp_path / "f.h5") == 2  # fmt: skip
    refused(capsys, "made from other images than", "rerun embed")
    assert run("kept", "--embeddings", made.embeddings[0], "--output", tmp_path / "f.h5") == 2
    refused(capsys, "--rows: needed for --part kept")


def test_kept_embeddings_are_the_rows_that_are_kept(tmp_path: Path, capsys) -> None:
    from mlcd.data.embeddings import Embeddings

    made = Run(tmp_path, planted("copies"), duplicate_similarity=0.95)
    made.facts()
    found = made.choose()
    for path, one in zip(made.embeddings, found, strict=True):
        output = tmp_path / "kept" / path.name
        words = ["--embeddings", path, "--rows", one.path, "--output", output]
        assert run("kept", *words) == 0
        source, kept = Embeddings(path), Embeddings(output)
        rows = np.flatnonzero(one.kept())
        np.testing.assert_array_equal(kept.read_stored(), source.read_stored()[rows])
        np.testing.assert_array_equal(kept.keys(), source.keys()[rows])
        for mine, theirs in zip(kept.places(), source.places(), strict=True):
            np.testing.assert_array_equal(mine, theirs[rows])
        assert kept.model == source.model
        assert kept.attributes["embeddings"] == source.fingerprint
        assert kept.attributes["curation"] == one.fingerprint
        assert kept.attributes["manifest"] == source.attributes["manifest"]
    words[1] = made.embeddings[0]
    assert run("kept", *words) == 2
    refused(capsys, f"{made.embeddings[0]}: of other images than {one.path}")


def test_a_decision_is_told_by_row(tmp_path: Path) -> None:
    made = Run(tmp_path, planted("copies"), duplicate_similarity=0.95)
    made.facts()
    found: list[Curation] = made.choose()
    one = found[2]
    row = int(np.flatnonzero(~one.kept())[0])
    decision = one.decision(row)
    assert decision is not None and decision.reason == "duplicate"
    keeper = found[one.chunks.index(decision.chunk)]
    assert keeper.decision(decision.row) is None
    assert 0.9 < decision.similarity < 1.001


def test_a_pair_that_is_told_of_often_is_one_pair() -> None:
    from mlcd.stages.curate.groups import Groups

    groups = Groups()
    for _ in range(3):
        groups.add(np.full(256, 4), np.full(256, 2))
    groups.add(np.array([9]), np.array([4]))
    center, other = groups.as_stars()
    assert (center.tolist(), other.tolist()) == ([2, 2], [4, 9])
