"""Two-level k-means, held to the exact one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from helpers import builders
from helpers.builders import unit
from helpers.cluster_runs import files_of, run, stored
from mlcd import cli
from mlcd.data.centroids import Centroids
from mlcd.stages.cluster.two_level_search import shares

#: A run that stands still after so many checkpoints, for ever.
STOPPING = """
import sys, time
from mlcd import cli
from mlcd.stages.cluster import saved_state
save, left = saved_state.save, int(sys.argv[1])
def stopping(folder, state):
    global left
    save(folder, state)
    left -= 1
    if not left:
        print("saved", flush=True)
        time.sleep(600)
saved_state.save = stopping
raise SystemExit(cli.main(sys.argv[2:]))
"""


def test_shares_follow_the_sizes_and_add_up() -> None:
    size = np.array([50, 0, 25, 24, 1])
    np.testing.assert_array_equal(shares(size, 10), [5, 0, 3, 2, 0])
    np.testing.assert_array_equal(shares(size, 100), size)
    rng = np.random.default_rng(0)
    for k in (1, 7, 300, 3999):
        size = rng.integers(0, 99, 90)
        given = shares(size, min(k, size.sum()))
        assert given.sum() == min(k, size.sum())
        assert (given <= size).all()
        assert (np.abs(given - k * size / size.sum()) < 1).all() or k > size.sum()


def plain_objective(files: list[Path], centers: np.ndarray) -> float:
    return float((stored(files) @ centers.T.astype(float)).max(axis=1).mean())


def test_two_level_comes_near_the_exact_objective_and_all_centers_live(tmp_path: Path) -> None:
    # Groups of groups, and many copies: random first centers leave some without rows.
    rng = np.random.default_rng(0)
    wide = unit(rng.standard_normal((30, 24)))
    narrow = unit(wide[rng.integers(0, 30, 300)] + 0.1 * rng.standard_normal((300, 24)))
    vectors = unit(narrow[rng.integers(0, 300, 6000)] + 0.06 * rng.standard_normal((6000, 24)))
    vectors[1000:1400] = vectors[1000]
    files = files_of(tmp_path, vectors, 2)
    found = {}
    for name, options in {
        "exact": ["--mode", "exact"],
        "within": ["--mode", "two_level", "--refinements", 0],
        "two_level": ["--mode", "two_level", "--refinements", 4, "--probes", 3],
        "finished": ["--mode", "two_level", "--refinements", 4, "--probes", 0],
    }.items():
        output = tmp_path / name / "c.h5"
        assert run(files, output, "--k", 256, "--iterations", 6, *options) == 0
        found[name] = Centroids(output)
    objective = {name: plain_objective(files, c.array) for name, c in found.items()}
    assert objective["two_level"] > objective["exact"] - 0.005 > objective["within"] - 0.005
    assert objective["finished"] > objective["exact"] - 0.005
    for name in ("two_level", "finished"):
        assert (found[name].sizes > 0).all()
        nearest = (stored(files) @ found[name].array.T.astype(float)).argmax(axis=1)
        assert len(np.unique(nearest)) >= 254
    lines = (tmp_path / "two_level/iterations.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert list(dict.fromkeys(record["phase"] for record in records)) == [
        "coarse", "within", "refine",
    ]  # fmt: skip
    late = [record["objective"] for record in records if record["phase"] != "coarse"]
    assert found["two_level"].objective.tolist() == late


OPTIONS = ["--mode", "two_level", "--k", 64, "--iterations", 3, "--refinements", 2, "--probes", 2]

OPTIONS = [str(option) for option in [*OPTIONS, "--threads", 1]]


def test_same_bytes_for_any_blocks_and_ranks(tmp_path: Path) -> None:
    files = files_of(tmp_path, builders.unit_vectors(1500, 24, groups=30), 3)
    runs = {
        "one": ["--memory-limit", "6GiB"],
        "small": ["--memory-limit", builders.memory_limit(450)],
        "ranks": ["--ranks-per-node", 3],
    }
    results = set()
    for name, options in runs.items():
        output = tmp_path / name / "c.h5"
        assert run(files, output, *OPTIONS, *options) == 0
        results.add((output.read_bytes(), output.with_name("iterations.jsonl").read_bytes()))
        assert not list((tmp_path / name / "state").iterdir())
    assert len(results) == 1


def test_killed_in_each_phase_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    files = files_of(tmp_path, builders.unit_vectors(1200, 24, groups=20), 2)
    assert run(files, tmp_path / "whole/c.h5", *OPTIONS) == 0
    words = ["cluster", "--embeddings", *map(str, files), "--output", str(tmp_path / "cut/c.h5")]
    for saved in (2, 3, 2):
        process = subprocess.Popen(
            [sys.executable, "-c", STOPPING, str(saved), *words, *OPTIONS],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env={**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[1])},
        )
        assert process.stdout.readline().startswith("saved")
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    assert len(list((tmp_path / "cut/state").glob("*/refine/*.h5"))) == 1
    assert run(files, tmp_path / "cut/c.h5", *OPTIONS) == 0
    for name in ("c.h5", "iterations.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
