"""A gang over several nodes, before the run needs one: does it start, add up, and train?"""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlcd.commands.doctor.checks import Check, fail, ok, warn
from mlcd.commands.doctor.demands import Demand
from mlcd.commands.doctor.exercise import exercise
from mlcd.launch.api import run_gang
from mlcd.launch.options import Resources
from mlcd.utils.errors import UserError

#: MB that are added up: on GPUs, and where gloo and main memory do it.
_ON_GPUS, _ON_CPUS = 1000, 32
_STEPS = 20
#: Minutes of the job, and MB of each rank's node.
_MINUTES, _MEMORY = 10, 3000
#: GB/s that two GPU nodes should reach at least: half of a network card of 25 Gbit/s.
_LEAST = 1.5


def checks(asked: list[Demand], nodes: int, results: Path, wait: int) -> Iterator[Check]:
    """Run the gang on `nodes` nodes of the partition that trains; `results` is on a shared disk.

    A job that has not started after `wait` seconds is taken out of the queue.
    """
    demand = next((one for one in asked if one.rule == "train"), None)
    if demand is None:
        gangs = sorted(asked, key=lambda one: (one.nodes, one.gpu))
        if not gangs:
            return
        demand = gangs[-1]
    results.mkdir(parents=True, exist_ok=True)
    folder = results.absolute() / f".doctor-{secrets.token_hex(4)}"
    try:
        yield from _look(demand, nodes, folder, wait)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _look(demand: Demand, nodes: int, home: Path, wait: int) -> Iterator[Check]:
    title = f"gang of {nodes} nodes"
    resources = _resources(demand, nodes, wait)
    size = _ON_GPUS if demand.gpu else _ON_CPUS
    device = "cuda" if demand.gpu else "cpu"
    try:
        kwargs = {"device": device, "megabytes": size, "steps": _STEPS}
        found = run_gang(exercise, kwargs, home, resources, stage="doctor")
    except UserError as error:
        if "DEADLINE" in str(error):
            yield warn(title, f"{nodes} nodes were not free within {wait} s",
                       f"ask again with --wait {10 * wait}")  # fmt: skip
            return
        yield fail(title, str(error), "see what the rank said, and NCCL_DEBUG=INFO")
        return
    yield from _told(title, found, size, demand.gpu)


def _resources(demand: Demand, nodes: int, wait: int) -> Resources:
    """Return a gang like that of `demand`, on `nodes` nodes."""
    options: dict[str, Any] = {"deadline": f"now+{wait + 60 * _MINUTES}seconds"}
    ranks = 1
    if demand.gpu:
        last = demand.gres.split(":")[-1]
        ranks = int(last) if last.isdigit() else 1
        options["gres"] = demand.gres
    return Resources(
        launcher="slurm", nodes=nodes, ranks_per_node=ranks, threads=max(1, demand.cpus // ranks),
        gpus=demand.gpu, timeout_min=_MINUTES, requeues=0,
        mem_mb=min(demand.memory, _MEMORY * ranks), partition=demand.partition,
        account=demand.account, options=options,
    )  # fmt: skip


def _told(title: str, found: dict[str, Any], size: int, gpu: bool) -> Iterator[Check]:
    seen = f"{found['world_size']} ranks add up {size} MB at {found['gb_per_s']:.2f} GB/s"
    if not found["sum_is_right"]:
        yield fail(title, f"{seen}, and the sum is wrong", "ask the cluster: network or memory")
    elif gpu and found["gb_per_s"] < _LEAST:
        yield warn(title, f"{seen}: slower than a network card of 25 Gbit/s",
                   "see which interface NCCL takes (NCCL_DEBUG=INFO), set NCCL_SOCKET_IFNAME or "
                   "NCCL_IB_HCA")  # fmt: skip
    else:
        yield ok(title, seen)
    steps = f"{_STEPS} steps of a small encoder, {found['seconds_per_step'] * 1e3:.0f} ms each"
    if found["losses_are_finite"] and found["losses_are_equal"]:
        yield ok("training", steps)
    else:
        word = "not finite" if not found["losses_are_finite"] else "not equal on all ranks"
        yield fail("training", f"{steps}; losses are {word}", "report it, with this output")
