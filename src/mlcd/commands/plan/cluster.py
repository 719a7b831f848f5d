"""`mlcd cluster --plan`: what a clustering would take, in words."""

from __future__ import annotations

import argparse
import math

from mlcd.commands.plan import gpus
from mlcd.commands.plan.cluster_cost import (
    EFFICIENCY,
    GPUS,
    HALF_EFFICIENCY,
    Plan,
    Problem,
    itemsize,
    plan,
)
from mlcd.config.cluster import Cluster
from mlcd.data.embeddings import open_all
from mlcd.launch import options
from mlcd.neighbors import memory
from mlcd.utils.errors import UserError
from mlcd.utils.units import binary_size, parse_size

#: Products of half precision.
_HALF = ("float16", "bfloat16")


def run(arguments: argparse.Namespace, section: Cluster) -> None:
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
    resources = options.resources(arguments)
    problem = Problem(n, d, itemsize(files), resources.ranks)
    text = arguments.memory_limit
    limit = parse_size(text) if text else memory.default_limit() // resources.ranks_per_node
    flops = _flops(arguments)
    memory_of_gpu = _gpu_memory(arguments) if flops else None
    found = plan(problem, section, files, limit, resources.threads, flops, memory_of_gpu)
    for name, value in _lines(arguments, section, problem, found, resources.threads, flops):
        print(f"{name:<18}{value}" if len(name) < 18 else f"{name}: {value}")


def _flops(arguments: argparse.Namespace) -> float:
    """Return the FLOP/s of a rank, or 0 for this machine's CPU."""
    if arguments.flops is not None:
        if not (math.isfinite(arguments.flops) and arguments.flops > 0):
            raise UserError(f"--flops: expected a rate such as 1e13, got {arguments.flops}")
        return float(arguments.flops)
    if arguments.gpu is None:
        if arguments.products in _HALF:
            raise UserError(
                f"--products: --plan times {arguments.products} on no CPU; give --gpu NAME or "
                "--flops for GPUs"
            )
        if arguments.device == "cuda":
            raise UserError(
                "--device: --plan times this machine's CPU; give --gpu NAME or --flops for GPUs"
            )
        return 0.0
    if arguments.gpu.lower() not in GPUS:
        raise UserError(
            f"--gpu: {arguments.gpu!r} is none of {', '.join(GPUS)}; give --flops instead"
        )
    if _half(arguments):
        return gpus.GPUS[arguments.gpu.lower()].peak * HALF_EFFICIENCY
    return GPUS[arguments.gpu.lower()] * EFFICIENCY


def _half(arguments: argparse.Namespace) -> bool:
    """Return whether products are of half precision: on GPUs, unless told otherwise."""
    return arguments.products in _HALF or (
        arguments.products == "auto" and arguments.gpu is not None and arguments.flops is None
    )


def _gpu_memory(arguments: argparse.Namespace) -> float | None:
    """Return the bytes of a GPU with products of half precision, 0 if unknown; None without."""
    if not _half(arguments):
        return None
    return gpus.GPUS[arguments.gpu.lower()].memory if arguments.gpu else 0.0


def _lines(arguments: argparse.Namespace, section: Cluster, problem: Problem, found: Plan,
           threads: int, flops: float) -> list[tuple[str, str]]:  # fmt: skip
    """Return what is printed: names and values."""
    half = bool(flops) and _half(arguments)
    if flops:
        rate = f"{flops:.3g} FLOP/s per rank"
        if arguments.flops is None:
            share, kind = (HALF_EFFICIENCY, "half-precision") if half else (EFFICIENCY, "float32")
            rate += f" ({share:.0%} of the {kind} peak of {arguments.gpu.lower()}: assumed)"
        rate += f", host work as timed here on one core, {threads} cores per rank"
    else:
        source = "a sample of the rows" if arguments.embeddings else "random rows: an upper bound"
        rate = f"this CPU, {threads} threads per rank, timed on {source}"
    lines = [
        ("rows", f"{problem.n:,} of {problem.d} dimensions"),
        ("clusters", f"{section.k:,}, mode {section.mode}"),
        ("ranks", f"{problem.ranks}, {problem.share:,} rows each"),
        ("memory per rank", f"{binary_size(found.memory)}, rows "
                          f"{'kept in memory' if found.keep else 'read anew each pass'}"),
        ("bytes read", f"{binary_size(found.bytes_read)} by all ranks"),
        ("added up", f"{binary_size(8 * section.k * problem.d)} of sums per pass over the network, "
                     "whose time is not counted" if problem.ranks > 1 else "nothing between ranks"),
        ("products", f"{found.flop:.3g} FLOP by all ranks, if none is spared"),
        ("rates", rate),
    ]  # fmt: skip
    for name, (cpu, wall) in found.seconds.items():
        if name == "first centers" and section.init != "random" and not section.initial:
            name += f", {section.init} not counted"
        lines.append((f"  {name}", f"{_time(wall)} ({cpu:,.1f} CPU s per rank)"))
    lines.append(("expected time", f"{_time(found.wall)} ({found.cpu:,.1f} CPU s per rank)"))
    warning = "a job must last longer: a checkpoint is saved after each pass, none within"
    lines.append(("longest pass", f"{_time(found.longest)}; {warning}"))
    return lines


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
