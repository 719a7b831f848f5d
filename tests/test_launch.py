"""The gang launcher on this machine: results, failures, interruption, a driver that was killed."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch

from mlcd import notice
from mlcd.errors import UserError
from mlcd.gang import meeting_port
from mlcd.launch import Resources, run_gang


def place(word: str) -> dict:
    return {"word": word, **{name: os.environ[name] for name in ("RANK", "WORLD_SIZE")}}


def misbehave(how: str, pids: str = "") -> str:
    rank = int(os.environ["RANK"])
    if pids:
        Path(pids, f"{rank}.pid").write_text(str(os.getpid()))
        await_pids(Path(pids))
    if rank == 1:
        if how == "raise":
            print("about to fail", flush=True)
            raise ValueError("the second rank cannot go on")
        if how == "user":
            raise UserError("labels.h5: stale; rerun label")
        if how == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(60)
    return "unreachable"


def await_pids(folder: Path) -> None:
    """Wait until both ranks have left their process id."""
    end = time.monotonic() + 60
    while len(list(folder.glob("*.pid"))) < 2:
        assert time.monotonic() < end
        time.sleep(0.02)


def slow(pids: str, seconds: float) -> str:
    Path(pids, f"{os.environ['RANK']}.pid").write_text(str(os.getpid()))
    time.sleep(seconds)
    return "finished"


def ranks_gone(folder: Path, seconds: float = 5.0) -> bool:
    """True when no process whose id stands in `folder` is left."""
    end = time.monotonic() + seconds
    pids = [int(path.read_text()) for path in folder.glob("*.pid")]
    while time.monotonic() < end:
        if not any(psutil.pid_exists(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False


TWO = Resources(ranks_per_node=2)


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
        ("raise", r"rank 1 of 2 failed: ValueError: the second rank cannot go on[\s\S]*about to"),
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


def driver(tmp_path: Path, seconds: float) -> subprocess.Popen:
    """Start a driver in its own process; return when both ranks run."""
    code = (
        "import sys; from pathlib import Path; from test_launch import *\n"
        # A shell that runs the tests in its background has them ignore SIGINT, and it is inherited.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"print(run_gang(slow, dict(pids={str(tmp_path)!r}, seconds={seconds}),"
        f" Path({str(tmp_path)!r}), TWO), flush=True)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen([sys.executable, "-c", code], env=environment,
                               stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)  # fmt: skip
    await_pids(tmp_path)
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_driver_ends_its_ranks(tmp_path, number):
    process = driver(tmp_path, 60)
    process.send_signal(number)
    assert process.wait(15) != 0
    assert ranks_gone(tmp_path)


def test_a_killed_driver_leaves_the_gang_and_the_next_one_attaches(tmp_path):
    process = driver(tmp_path, 6)
    process.kill()
    process.wait()
    job = json.loads((tmp_path / "gang" / "job.json").read_text())
    pids = sorted(path.read_text() for path in tmp_path.glob("*.pid"))
    assert all(psutil.pid_exists(int(pid)) for pid in pids)
    # Another function is asked for, but the live job is waited for: nothing is started.
    assert run_gang(place, {"word": "new"}, tmp_path, TWO) == "finished"
    assert json.loads((tmp_path / "gang" / "job.json").read_text()) == job
    assert sorted(path.read_text() for path in tmp_path.glob("*.pid")) == pids
    # Now that it has ended, the next call starts its own.
    assert run_gang(place, {"word": "new"}, tmp_path, TWO)["word"] == "new"


def test_killing_the_controller_ends_the_ranks(tmp_path):
    process = driver(tmp_path, 60)
    os.kill(int(json.loads((tmp_path / "gang" / "job.json").read_text())["job_id"]), signal.SIGKILL)
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
    ranks = torch.cuda.device_count() + 1
    with pytest.raises(UserError, match=f"--ranks-per-node: {ranks} needs as many GPUs, and this"):
        run_gang(place, {"word": "x"}, tmp_path, Resources(ranks_per_node=ranks, gpus=True))
    assert not (tmp_path / "gang").exists()


def test_the_ranks_of_a_slurm_job_meet_below_the_ports_of_outgoing_connections(monkeypatch):
    found = set()
    for job in range(50):
        for restarts in ("0", "1"):
            monkeypatch.setenv("SLURM_JOB_ID", str(job))
            monkeypatch.setenv("SLURM_RESTART_COUNT", restarts)
            port = meeting_port()
            assert port == meeting_port()
            assert 20_000 <= port < 32_768
            found.add(port)
    # Another start, another port: the old one may still be held.
    assert len(found) > 95


_WARNED = """
import os, signal, threading, time
assert signal.SIGUSR2 in signal.pthread_sigmask(signal.SIG_BLOCK, [])
os.kill(os.getpid(), signal.SIGUSR2)
from mlcd import notice
requeued = threading.Event()
notice.listen(requeued.set, 60)
print(requeued.wait(30), notice.stop_asked(), flush=True)
"""


def test_a_warning_before_a_rank_listens_is_not_lost():
    command = f"{notice.python()} -c {shlex.quote(_WARNED)}"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "True True\n", done
