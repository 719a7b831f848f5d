"""Which ranks count as stuck once another has finished."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from helpers.local_gangs import TWO
from mlcd.launch import driver
from mlcd.launch.api import run_gang
from mlcd.launch.stragglers import Stragglers
from mlcd.utils.errors import UserError
from mlcd.utils.files import write_json


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def used(files: Path, rank: int, cpu: float, written: int, in_disk: bool = False) -> None:
    usage = {"cpu_s": cpu, "written_mb": written, "in_disk": in_disk}
    write_json(files / f"rank-{rank}.usage.json", usage)


def test_a_rank_that_works_is_waited_for_and_an_idle_one_is_not(tmp_path):
    clock = Clock()
    stragglers = Stragglers(100, clock)
    used(tmp_path, 0, 5.0, 10)
    used(tmp_path, 1, 5.0, 10)
    assert stragglers.stuck(tmp_path, 2, []) is None
    clock.now = 1000
    # The grace begins when the first rank is done, not when it was first asked.
    assert stragglers.stuck(tmp_path, 2, [1]) is None
    for step in range(1, 6):
        clock.now += 90
        # A slow disk: a megabyte in a minute and a half.
        used(tmp_path, 0, 5.0, 10 + step)
        assert stragglers.stuck(tmp_path, 2, [1]) is None
    for _ in range(5):
        clock.now += 90
        # Hashing what was written: no byte, but work.
        used(tmp_path, 0, 5.0 + clock.now, 15)
        assert stragglers.stuck(tmp_path, 2, [1]) is None
    for _ in range(3):
        clock.now += 90
        used(tmp_path, 0, 5.0 + 1450, 15, in_disk=True)
        assert stragglers.stuck(tmp_path, 2, [1]) is None
    clock.now += 90
    # A heartbeat costs a little, too.
    used(tmp_path, 0, 5.2 + 1450, 15)
    assert stragglers.stuck(tmp_path, 2, [1]) is None
    clock.now += 20
    assert stragglers.stuck(tmp_path, 2, [1]) == 0


def test_a_rank_without_a_heartbeat_is_stuck_too(tmp_path):
    clock = Clock()
    stragglers = Stragglers(100, clock)
    assert stragglers.stuck(tmp_path, 3, [0, 1]) is None
    clock.now = 101
    assert stragglers.stuck(tmp_path, 3, [0, 1]) == 2


def finish_late(folder: str, seconds: float) -> int:
    """Rank 0 writes slowly for so long, the other rank is done at once; -1: does nothing."""
    if os.environ["RANK"] != "0":
        return 0
    written = 0
    with (Path(folder) / "final").open("wb", buffering=0) as out:
        end = time.monotonic() + abs(seconds)
        while time.monotonic() < end:
            if seconds > 0:
                written += out.write(bytes(1 << 20))
            time.sleep(0.2)
    return written


def gang(tmp_path: Path, seconds: float) -> int:
    return run_gang(
        finish_late, {"folder": str(tmp_path), "seconds": seconds}, tmp_path / "state", TWO,
        stage="test",
    )  # fmt: skip


def test_final_files_may_take_longer_than_the_grace(tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "_GRACE", 8.0)
    assert gang(tmp_path, 14.0) == (tmp_path / "final").stat().st_size


def test_a_rank_that_does_nothing_any_more_ends_the_gang(tmp_path, monkeypatch):
    monkeypatch.setattr(driver, "_GRACE", 3.0)
    with pytest.raises(UserError, match="rank 0 of 2 did not end after the others had finished"):
        gang(tmp_path, -100.0)
