"""The gang launcher on this machine: results, failures, interruption, a driver that was killed."""

import dataclasses
import json
import os
import signal
import time
from pathlib import Path

import psutil
import pytest
import torch

from helpers.local_gangs import TWO, driver, misbehave, place, ranks_gone, slow
from mlcd.launch.api import run_gang
from mlcd.launch.options import Resources
from mlcd.utils.errors import UserError


@pytest.mark.parametrize("resources", [TWO, Resources(launcher="inline")])
def test_result_of_rank_0_and_place_of_ranks(tmp_path, resources):
    before = dict(os.environ)
    assert run_gang(place, {"word": "hello"}, tmp_path, resources) == {
        "word": "hello", "RANK": "0", "WORLD_SIZE": str(resources.ranks),
    }  # fmt: skip
    assert dict(os.environ) == before


@pytest.mark.parametrize(
    "how, expected",
    [
        (
            "raise",
            r"rank 1 of 2 failed: ValueError: the second rank cannot continue[\s\S]*about to",
        ),
        ("user", r"^labels.h5: stale; rerun label$"),
        ("killed", r"rank 1 of 2 was killed from outside"),
    ],
)
def test_a_failed_rank_ends_the_gang_in_seconds(tmp_path, how, expected):
    start = time.monotonic()
    with pytest.raises(UserError, match=expected):
        run_gang(misbehave, {"how": how, "pids": str(tmp_path)}, tmp_path, TWO)
    assert time.monotonic() - start < 30
    assert len(list(tmp_path.glob("*.pid"))) == 2
    assert ranks_gone(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_driver_ends_its_ranks(tmp_path, number):
    process = driver(tmp_path, 60)
    process.send_signal(number)
    assert process.wait(15) != 0
    assert ranks_gone(tmp_path)


def other_work(tmp_path: Path, **options) -> object:
    return run_gang(place, {"word": "new"}, tmp_path, dataclasses.replace(TWO, **options))


def test_a_killed_driver_leaves_the_gang_and_the_next_one_attaches(tmp_path):
    process = driver(tmp_path, 6)
    process.kill()
    process.wait()
    job = json.loads((tmp_path / "job.json").read_text())
    pids = sorted(path.read_text() for path in tmp_path.glob("*.pid"))
    assert all(psutil.pid_exists(int(pid)) for pid in pids)
    work = {"pids": str(tmp_path), "seconds": 6}
    for _ in "alive", "finished":
        assert run_gang(slow, work, tmp_path, TWO) == "finished"
        assert json.loads((tmp_path / "job.json").read_text()) == job
        assert sorted(path.read_text() for path in tmp_path.glob("*.pid")) == pids
    # It has ended, so that other work may start.
    assert other_work(tmp_path)["word"] == "new"


def test_a_live_gang_of_other_work_is_named_or_ended(tmp_path):
    driver(tmp_path, 60).kill()
    pid = json.loads((tmp_path / "job.json").read_text())["job_id"]
    for launcher in ("local", "inline"):
        one = {"launcher": launcher, "ranks_per_node": 1}
        expected = rf"process {pid} on .* still writes; wait .* `kill {pid}`, or give --end-other"
        with pytest.raises(UserError, match=expected):
            other_work(tmp_path, **one)
    assert not ranks_gone(tmp_path, 1)
    assert other_work(tmp_path, end_other=True)["word"] == "new"
    assert ranks_gone(tmp_path)


def test_killing_the_controller_ends_the_ranks(tmp_path):
    process = driver(tmp_path, 60)
    os.kill(int(json.loads((tmp_path / "job.json").read_text())["job_id"]), signal.SIGKILL)
    assert process.wait(15) != 0
    assert ranks_gone(tmp_path)


@pytest.mark.parametrize(
    "options, expected",
    [
        ({"nodes": 2}, "--nodes"),
        ({"ranks_per_node": 0}, "--ranks-per-node"),
        ({"launcher": "inline", "ranks_per_node": 2}, "inline"),
    ],
)
def test_impossible_resources_are_refused(options, expected):
    with pytest.raises(UserError, match=expected):
        Resources(**options)


def test_more_ranks_than_gpus_are_refused_in_a_line(tmp_path):
    found = torch.cuda.device_count()
    ranks = found + 1
    many = f"--ranks-per-node: {ranks} needs as many GPUs, and this machine has {found}; give"
    with pytest.raises(
        UserError, match=many if found else "this machine has no GPU; give --device cpu"
    ):
        run_gang(place, {"word": "x"}, tmp_path, Resources(ranks_per_node=ranks, gpus=True))
    assert not list(tmp_path.iterdir())
