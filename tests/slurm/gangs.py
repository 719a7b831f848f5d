"""Small gangs for the launcher's tests on Slurm: what ranks do, and a driver in its own process."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from mlcd.launch import preemption
from mlcd.launch.options import Resources
from mlcd.launch.process_group import process_group
from mlcd.training.collectives import all_sum

HERE = Path(__file__).parent
FOUR = Resources(launcher="slurm", nodes=2, ranks_per_node=2, mem_mb=1500, timeout_min=10)
TWO = Resources(launcher="slurm", nodes=2, ranks_per_node=1, mem_mb=1500, timeout_min=10)


def places() -> list:
    """Return each rank's place, gathered over the process group, and the sum of all ranks."""
    import torch.distributed as dist

    with process_group("cpu") as place:
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "SLURMD_NODENAME")
        found = [None] * place.world_size
        dist.all_gather_object(found, {name: os.environ[name] for name in names})
        return [found, all_sum([place.rank], place.device)]


def count(folder: str, steps: int, seconds: float, *, heeding: bool = True) -> dict:
    """Take steps together, saving at notices and every 10 steps; resume from what is saved."""
    home = Path(folder)
    with process_group("cpu") as place:
        saved = home / "saved.json"
        step = json.loads(saved.read_text())["step"] if saved.exists() else 0
        if place.is_main:
            with (home / "starts").open("a") as handle:
                handle.write(f"{step}\n")
        while step < steps:
            time.sleep(seconds)
            asked = float(heeding and preemption.stop_asked())
            (stop,) = all_sum([asked], place.device)
            step += 1
            if place.is_main:
                (home / "step").write_text(str(step))
                if stop or step % 10 == 0:
                    temporary = home / f"saved.{os.getpid()}"
                    temporary.write_text(json.dumps({"step": step}))
                    temporary.rename(saved)
            if stop:
                all_sum([0.0], place.device)
                preemption.saved()
        return {"steps": step}


def misbehave(how: str, folder: str) -> None:
    """Work together until rank 1 fails in some way."""
    with process_group("cpu") as place:
        for step in range(600):
            all_sum([1.0], place.device)
            time.sleep(0.1)
            Path(folder, f"rank-{place.rank}").write_text(str(os.getpid()))
            if how == "stubborn":
                # Heeds warnings, and never saves.
                preemption.stop_asked()
            if place.rank != 1 or step < 5:
                continue
            print("rank 1 is about to fail", flush=True)
            if how == "raise":
                raise ValueError("the second rank cannot continue")
            if how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "memory":
                held = [bytearray(200 << 20) for _ in range(20)]
                time.sleep(60)
                del held


def wait_for(condition, seconds: float = 90.0):
    """Return the first true value of `condition()`."""
    end = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.1)
    return value


def start_driver(folder: Path, call: str, resources: str) -> subprocess.Popen:
    """Run `run_gang(CALL, folder/state, RESOURCES)` in its own process; it prints the result."""
    code = (
        "import logging, signal, sys; from pathlib import Path\n"
        "import dataclasses; from gangs import *\n"
        "from mlcd.launch.api import run_gang; from mlcd.launch.options import Resources\n"
        "from mlcd.utils.logging import setup_logging; setup_logging(None, 'test')\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"print(run_gang({call}, Path({str(folder)!r}) / 'state', {resources}), flush=True)\n"
    )
    path = os.pathsep.join([str(HERE), *filter(None, sys.path)])
    environment = {**os.environ, "PYTHONPATH": path}
    return subprocess.Popen(
        [sys.executable, "-c", code], env=environment, text=True,
        stdout=(folder / "out").open("a"), stderr=(folder / "err").open("a"),
    )  # fmt: skip


def job_of(folder: Path) -> str:
    """Return the id of the job that the driver on `folder` has recorded."""

    def recorded():
        path = folder / "state" / "job.json"
        return path.exists() and json.loads(path.read_text())["job_id"]

    return wait_for(recorded)


def slurm(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


def with_a_wrong_clock() -> int:
    """Join a group in which the clock of rank 1 is an hour ahead."""
    from types import SimpleNamespace

    from mlcd.launch import consistency

    if os.environ["RANK"] == "1":
        consistency.time = SimpleNamespace(time=lambda: time.time() + 3600)
    with process_group("cpu") as place:
        return place.world_size
