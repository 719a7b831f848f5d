"""Child processes of a download: deadlines, orphans, the lock."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import psutil

from mlcd.stages.download import child


def supervise(tmp_path: Path, code: str, seconds: float) -> int | None:
    return child.supervise(
        [sys.executable, "-c", code],
        log=tmp_path / "log",
        until=time.monotonic() + seconds,
        environment=dict(os.environ),
    )


def test_the_whole_group_ends_at_the_deadline(tmp_path: Path) -> None:
    code = """
import subprocess, sys, time
nap = "import time; time.sleep(60)"
for _ in range(2):
    print(subprocess.Popen([sys.executable, "-c", nap]).pid, flush=True)
time.sleep(60)
"""
    start = time.monotonic()
    assert supervise(tmp_path, code, 2.5) is None
    assert time.monotonic() - start < 15
    grandchildren = [int(line) for line in child.last_lines(tmp_path / "log", 9)]
    assert len(grandchildren) == 2
    _wait_until(lambda: not any(alive(pid) for pid in grandchildren))


def test_orphans_end_with_their_leader(tmp_path: Path) -> None:
    code = """
import subprocess, sys
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid, flush=True)
sys.exit(3)
"""
    assert supervise(tmp_path, code, 60) == 3
    orphan = int(child.last_lines(tmp_path / "log", 1)[0])
    _wait_until(lambda: not alive(orphan))


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def _wait_until(condition: object, seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until
        time.sleep(0.05)


def test_lock_is_held_by_one(tmp_path: Path) -> None:
    first = child.lock(tmp_path / "lock", 1)
    assert first is not None
    assert child.lock(tmp_path / "lock", 0.2) is None
    first.close()
    assert child.lock(tmp_path / "lock", 0.2) is not None
