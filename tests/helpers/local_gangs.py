"""What ranks of small gangs on this machine do; other processes import it by name."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from mlcd.launch import consistency
from mlcd.launch.options import Resources
from mlcd.launch.process_group import process_group
from mlcd.utils.errors import UserError


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
            raise ValueError("the second rank cannot continue")
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


def save_nothing(arguments: dict) -> dict:
    """Train as a run whose checkpoints somebody removed since; count the calls."""
    with Path(arguments["output"], "calls").open("a") as file:
        file.write("x")
    return {"steps": 3}


TWO = Resources(ranks_per_node=2)


def together(inputs: list[str]) -> int:
    """Join a group in which rank 1, on another node, sees the files of folder disk2 as these."""
    if os.environ["RANK"] == "1":
        os.environ["SLURMD_NODENAME"] = "node2"
        identity = consistency._identity
        consistency._identity = lambda path: identity(
            str(Path(path).parent / "disk2" / Path(path).name)
        )
    with process_group("cpu", inputs=inputs) as place:
        return place.world_size


def driver(tmp_path: Path, seconds: float) -> subprocess.Popen:
    """Start a driver in its own process; return when both ranks run."""
    code = (
        "import signal; from pathlib import Path\n"
        "from helpers.local_gangs import TWO, slow; from mlcd.launch.api import run_gang\n"
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


def ranks_gone(folder: Path, seconds: float = 5.0) -> bool:
    """True when no process whose id stands in `folder` is left."""
    end = time.monotonic() + seconds
    pids = [int(path.read_text()) for path in folder.glob("*.pid")]
    while time.monotonic() < end:
        if not any(psutil.pid_exists(pid) for pid in pids):
            return True
        time.sleep(0.05)
    return False
