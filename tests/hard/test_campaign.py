"""The campaign finds what it looks for: each kind of fault, made on purpose, is judged as such."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import psutil
import pytest
from cases import Case, Ended, Result, run, run_cases
from flips import damage, judge


@pytest.mark.parametrize(
    ("status", "said", "outcome"),
    [
        (0, "", "done"),
        (2, "mlcd: a/b.h5: damaged; remove it", "noticed"),
        (1, "Traceback (most recent call last):\n  ...", "traceback"),
        (0, "Traceback (most recent call last):\n  ...", "traceback"),
        (-signal.SIGSEGV, "", "crash"),
        (1, "Fatal Python error: Segmentation fault", "crash"),
    ],
)
def test_what_a_program_does_is_told_apart(status, said, outcome):
    assert Ended(status, said, 0.1).outcome() == outcome
    assert Ended(status, said, 0.1, hung=True).outcome() == "hang"


@pytest.mark.parametrize(
    ("status", "said", "name", "equal", "outcome"),
    [
        (0, "", "results/a/b.h5", True, "same"),
        (0, "", "results/a/b.h5", False, "SILENT"),
        (0, "", "lists/b.parquet", False, "other input"),
        (2, "ERROR results/a/b.h5: damaged", "results/a/b.h5", False, "noticed"),
        (2, "ERROR something is wrong", "results/a/b.h5", False, "unnamed"),
    ],
)
def test_what_a_reader_does_with_a_damaged_file_is_told_apart(status, said, name, equal, outcome):
    result = judge(Result("flips", "b", 0, ""), Ended(status, said, 0.1), name, equal)
    assert result.outcome == outcome
    assert result.fault == (outcome in ("SILENT", "unnamed"))


def test_damage_is_one_bit_or_a_shorter_file_and_follows_from_the_seed(tmp_path):
    path, kinds = tmp_path / "file", set()
    for seed in range(40):
        found = []
        for _ in range(2):
            path.write_bytes(bytes(range(100)))
            damage(path, random.Random(seed))
            found.append(path.read_bytes())
        assert found[0] == found[1]
        pairs = zip(found[0], bytes(range(100)), strict=False)
        bits = sum((one ^ two).bit_count() for one, two in pairs)
        kinds.add((len(found[0]) == 100, bits))
    assert kinds == {(True, 1), (False, 0)}


def orphan(pid_file: Path) -> int:
    """Start a process that outlives its parent in a session of its own, and hang."""
    if (pid := os.fork()) == 0:
        os.setsid()
    else:
        pid_file.write_text(str(pid))
    time.sleep(600)
    return 0


def test_a_hang_is_counted_and_nothing_of_it_is_left(tmp_path):
    pid_file = tmp_path / "pid"

    def hang(folder, rng):
        ended = run(lambda: orphan(pid_file), folder / "said", limit=3)
        return Result("part", "hang", 0, ended.outcome())

    def crash(folder, rng):
        ended = run(lambda: os.kill(os.getpid(), signal.SIGKILL) or 0, folder / "said")
        return Result("part", "crash", 1, ended.outcome())

    def broken(folder, rng):
        raise ValueError("a fault of the campaign")

    works = {"hang": hang, "crash": crash, "broken": broken}
    cases = [Case("part", name, 0, work) for name, work in works.items()]
    found = {one.kind: one for one in run_cases(cases, tmp_path, 0, 3, time.monotonic() + 60)}
    assert {kind: one.outcome for kind, one in found.items()} == {
        "hang": "hang", "crash": "crash", "broken": "harness"
    }  # fmt: skip
    assert "a fault of the campaign" in found["broken"].told
    left = int(pid_file.read_text())
    # What was killed stays a zombie until this machine's first process looks.
    assert not psutil.pid_exists(left) or psutil.Process(left).status() == psutil.STATUS_ZOMBIE
