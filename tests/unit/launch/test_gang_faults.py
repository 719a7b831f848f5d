"""Gangs on this machine that are killed, frozen, replaced or interrupted: one writer, no waits."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest

from helpers.disturbed_gangs import fail_after_progress, meet, publish, publish_now, wait_for
from helpers.local_gangs import TWO
from mlcd.launch import jobs_local
from mlcd.launch.api import run_gang
from mlcd.launch.gang_files import Record, gang_folder
from mlcd.launch.options import Resources
from mlcd.utils.errors import UserError


def rank_process(home: Path, rank: int) -> psutil.Process | None:
    """Return the process of a rank of the gang that is recorded in `home`, once it is there."""
    record = Record.read(home)
    if record is None or record.job_id is None:
        return None
    for process in psutil.Process(int(record.job_id)).children():
        try:
            if process.environ().get("RANK") == str(rank):
                return process
        except psutil.Error:
            continue
    return None


# ------------------------------------------------------------------ a rank is killed before a word


@pytest.mark.parametrize("delay", [0.0, 0.1, 0.6])
def test_a_rank_that_is_killed_in_its_first_moment_ends_the_gang(tmp_path, delay):
    def kill() -> None:
        process = wait_for(lambda: rank_process(tmp_path, 1))
        time.sleep(delay)
        process.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(UserError, match="rank 1 of 2 was killed from outside by SIGKILL"):
        run_gang(meet, {}, tmp_path, TWO)
    thread.join()
    assert rank_process_gone(tmp_path)


def test_a_gang_without_a_driver_ends_when_a_rank_is_killed(tmp_path):
    process = start_driver("meet", {}, tmp_path)
    victim = wait_for(lambda: rank_process(tmp_path, 0))
    process.kill()
    process.wait()
    victim.kill()
    wait_for(lambda: rank_process_gone(tmp_path), 60)


def rank_process_gone(home: Path) -> bool:
    record = Record.read(home)
    return not psutil.pid_exists(int(record.job_id)) or (
        psutil.Process(int(record.job_id)).status() == psutil.STATUS_ZOMBIE
    )


def start_driver(function: str, kwargs: dict, home: Path) -> subprocess.Popen:
    code = (
        "import signal; from pathlib import Path; from helpers.disturbed_gangs import *\n"
        "from mlcd.launch.api import run_gang; from helpers.local_gangs import TWO, slow\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"print(run_gang({function}, {kwargs!r}, Path({str(home)!r}), TWO), flush=True)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    return subprocess.Popen([sys.executable, "-c", code], env=environment, stdout=subprocess.PIPE,
                            stderr=subprocess.STDOUT, text=True)  # fmt: skip


# ------------------------------------------------------------------ two writers


def test_a_frozen_gang_that_was_replaced_publishes_nothing(tmp_path, monkeypatch):
    home = gang_folder(tmp_path / "out.h5")
    driver = start_driver("publish", {"folder": str(tmp_path), "word": "old"}, home)
    wait_for(lambda: len(list(tmp_path.glob("old-*.here"))) == 2)
    driver.kill()
    record = Record.read(home)
    controller = psutil.Process(int(record.job_id))
    old = controller.children()
    for process in [controller, *old]:
        process.suspend()
    # As another machine sees it: by its heartbeats alone.
    dataclasses.replace(record, place={"machine": "another", "host": "far", "created": 1}).write(
        home
    )
    monkeypatch.setattr(jobs_local, "LEASE", 1.0)
    (tmp_path / "new.go").touch()
    kwargs = {"folder": str(tmp_path), "word": "new"}
    assert run_gang(publish, kwargs, home, TWO) == "new"
    (tmp_path / "old.go").touch()
    for process in old:
        process.resume()
    # Refused, or ended by its own look at the record before it came to write.
    wait_for(lambda: not any(is_running(process) for process in old), 60)
    controller.resume()
    assert [json.loads((tmp_path / f"out-{rank}.json").read_text()) for rank in (0, 1)] == [
        "new", "new",
    ]  # fmt: skip
    refused = [path.read_text() for path in tmp_path.glob("*.refused")]
    assert all("another job has taken over" in text for text in refused)


def is_running(process: psutil.Process) -> bool:
    return process.is_running() and process.status() != psutil.STATUS_ZOMBIE


def test_a_gang_that_was_replaced_ends_itself_though_it_writes_nothing(tmp_path):
    driver = start_driver("slow", {"pids": str(tmp_path), "seconds": 100.0}, tmp_path / "gang")
    wait_for(lambda: len(list(tmp_path.glob("*.pid"))) == 2)
    driver.kill()
    record = Record.read(tmp_path / "gang")
    dataclasses.replace(record, folder=str(tmp_path / "job-other")).write(tmp_path / "gang")
    wait_for(lambda: rank_process_gone(tmp_path / "gang"), 60)


@pytest.mark.parametrize("text", ["[]", "7", '"x"', "{}", '{"launcher": 1}', "{", ""])
def test_a_damaged_record_is_no_record(tmp_path, text):
    (tmp_path / "job.json").write_text(text)
    assert Record.read(tmp_path) is None
    one = Resources(launcher="inline")
    assert run_gang(publish_now, {"folder": str(tmp_path)}, tmp_path, one) == "done"


# ------------------------------------------------------------------ interrupts


def test_the_first_interrupt_lets_the_ranks_save(tmp_path):
    process = start_driver("heed", {"folder": str(tmp_path), "saves": True}, tmp_path / "gang")
    wait_for(lambda: len(list(tmp_path.glob("*.working"))) == 2)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert len(list(tmp_path.glob("*.saved"))) == 2
    assert rank_process_gone(tmp_path / "gang")


def test_the_second_interrupt_ends_the_ranks_at_once(tmp_path):
    process = start_driver("heed", {"folder": str(tmp_path), "saves": False}, tmp_path / "gang")
    wait_for(lambda: len(list(tmp_path.glob("*.working"))) == 2)
    process.send_signal(signal.SIGINT)
    time.sleep(3)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode != 0
    assert rank_process_gone(tmp_path / "gang")


# ------------------------------------------------------------------ failures and progress


@pytest.mark.parametrize(
    "saves, limit, starts", [(True, 1, 3), (False, 1, None), (False, 2, None), (False, 3, 3)]
)
def test_only_failures_without_progress_count(tmp_path, saves, limit, starts):
    one = Resources(ranks_per_node=1, max_failures=limit)
    work = {"folder": str(tmp_path), "failures": 2, "saves": saves}

    def run():
        return run_gang(
            fail_after_progress, work, tmp_path / "gang", one,
            progress=lambda: sorted(tmp_path.glob("step-*")),
        )  # fmt: skip

    if starts:
        assert run() == starts
        return
    with pytest.raises(UserError, match="ValueError: this time it fails"):
        run()
    assert len(list(tmp_path.glob("start-*"))) == limit


#: What NCCL's watchdog and gloo say of a collective that timed out; see test_environment.
WATCHDOG = (
    "[Rank 3] Watchdog caught collective operation timeout: WorkNCCL(SeqNum=7, OpType=ALLREDUCE, "
    "Timeout(ms)=1800000) ran for 1800012 milliseconds before timing out."
)


@pytest.mark.parametrize("failures", [2, 3])
def test_a_collective_that_timed_out_is_tried_again_three_times(tmp_path, failures):
    one = Resources(ranks_per_node=1, max_failures=1)
    work = {"folder": str(tmp_path), "failures": failures, "saves": False, "message": WATCHDOG}
    if failures < 3:
        assert run_gang(fail_after_progress, work, tmp_path / "gang", one) == 3
    else:
        with pytest.raises(UserError, match="Watchdog caught"):
            run_gang(fail_after_progress, work, tmp_path / "gang", one)
    assert len(list(tmp_path.glob("start-*"))) == 3
