"""`mlcd cluster --plan`: what a clustering would take, in words."""

from __future__ import annotations

import argparse
import math

from mlcd import launch
from mlcd.cluster.cost import EFFICIENCY, GPUS, Plan, Problem, itemsize, plan
from mlcd.config.cluster import Cluster
from mlcd.errors import UserError
from mlcd.neighbours import memory
from mlcd.sizes import parse_size
from mlcd.stores.embeddings import open_all


def print_plan(arguments: argparse.Namespace, section: Cluster) -> None:
    """Print the plan of the clustering that the options ask for. Raises :class:`UserError`."""
    files = open_all(arguments.embeddings) if arguments.embeddings else []
    n = arguments.rows or sum(file.n for file in files)
    d = arguments.dim or (files[0].d if files else 0)
    for name, value in (("rows", n), ("dim", d)):
        if value <= 0:
            raise UserError(f"--{name}: --plan needs it, or --embeddings to take it from")
    if files and d != files[0].d:
        raise UserError(f"--dim: {d}, but {files[0].path} has {files[0].d}; leave it out")
    if section.k > n:
        raise UserError(f"cluster.k: {section.k} clusters of {n} rows; at most {n} are possible")
    resources = launch.resources(arguments)
    problem = Problem(n, d, itemsize(files), resources.ranks)
    text = arguments.memory_limit
    limit = parse_size(text) if text else memory.default_limit() // resources.ranks_per_node
    flops = _flops(arguments)
    found = plan(problem, section, files, limit, resources.threads, flops)
    for name, value in _lines(arguments, section, problem, found, resources.threads, flops):
        print(f"{name:<18}{value}" if len(name) < 18 else f"{name}: {value}")


def _flops(arguments: argparse.Namespace) -> float:
    """Return the FLOP/s of a rank, or 0 for this machine's CPU."""
    if arguments.flops is not None:
        if not (math.isfinite(arguments.flops) and arguments.flops > 0):
            raise UserError(f"--flops: expected a rate such as 1e13, got {arguments.flops}")
        return arguments.flops
    if arguments.gpu is None:
        if arguments.device == "cuda":
            raise UserError(
                "--device: --plan times this machine's CPU; give --gpu NAME or --flops for GPUs"
            )
        return 0.0
    if arguments.gpu.lower() not in GPUS:
        raise UserError(
            f"--gpu: {arguments.gpu!r} is none of {', '.join(GPUS)}; give --flops instead"
        )
    return GPUS[arguments.gpu.lower()] * EFFICIENCY


def _lines(arguments: argparse.Namespace, section: Cluster, problem: Problem, found: Plan,
           threads: int, flops: float) -> list[tuple[str, str]]:  # fmt: skip
    """Return what is printed: names and values."""
    if flops:
        rate = f"{flops:.3g} FLOP/s a rank"
        if arguments.flops is None:
            rate += f" ({EFFICIENCY:.0%} of the float32 peak of {arguments.gpu.lower()}: assumed)"
        rate += f", host work as timed here on one core, {threads} cores a rank"
    else:
        source = "a sample of the rows" if arguments.embeddings else "random rows: an upper bound"
        rate = f"this CPU, {threads} threads a rank, timed on {source}"
    lines = [
        ("rows", f"{problem.n:,} of {problem.d} dimensions"),
        ("clusters", f"{section.k:,}, mode {section.mode}"),
        ("ranks", f"{problem.ranks}, {problem.share:,} rows each"),
        ("memory a rank", f"{_bytes(found.memory)}, rows "
                          f"{'kept in memory' if found.keep else 'read anew each pass'}"),
        ("bytes read", f"{_bytes(found.bytes_read)} by all ranks"),
        ("added up", f"{_bytes(8 * section.k * problem.d)} of sums a pass over the ranks' network, "
                     "whose time is not counted" if problem.ranks > 1 else "nothing between ranks"),
        ("products", f"{found.flop:.3g} FLOP by all ranks, if none is spared"),
        ("rates", rate),
    ]  # fmt: skip
    for name, (cpu, wall) in found.seconds.items():
        if name == "first centres" and section.init != "random" and not section.initial:
            name += f", {section.init} not counted"
        lines.append((f"  {name}", f"{_time(wall)} ({cpu:,.1f} CPU s a rank)"))
    lines.append(("expected time", f"{_time(found.wall)} ({found.cpu:,.1f} CPU s a rank)"))
    warning = "a job must last longer: a checkpoint is saved after each pass, none within"
    lines.append(("longest pass", f"{_time(found.longest)}; {warning}"))
    return lines


def _bytes(count: float) -> str:
    for unit in ("MiB", "GiB", "TiB"):
        count /= 1024 if unit != "MiB" else 1 << 20
        if count < 1024 or unit == "TiB":
            break
    return f"{count:,.1f} {unit}"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
