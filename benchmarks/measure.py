"""Time and peak memory of contenders, measured alike.

Times: all contenders in this process, in turn within each round, so that a busy machine is busy for
all of them; medians. Wall-clock and CPU seconds (over all threads) are given: on a machine that
others use, the CPU seconds are the steadier of the two. Memory: each contender in a fresh child
process, after a warm-up call, the resident peak of one more call over what was resident before it
(Linux's VmHWM, reset between the two).
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch

# A function without arguments that builds its inputs and returns the call to measure.
Builder = Callable[[], Callable[[], object]]


@dataclass
class Result:
    """Medians in seconds, and bytes; cpus: the CPU seconds of each round, rising."""

    wall: float
    cpu: float
    peak: int
    cpus: list[float] = field(default_factory=list)


def compare(contenders: dict[str, Builder], *, repeats: int, threads: int) -> dict[str, Result]:
    """Measure each contender; builders must be importable by name (they run in children too)."""
    context = multiprocessing.get_context("spawn")
    peaks = {}
    for name, builder in contenders.items():
        with context.Pool(1) as pool:
            peaks[name] = pool.apply(peak_memory, (builder, threads))
    torch.set_num_threads(threads)
    calls = {name: builder() for name, builder in contenders.items()}
    wall: dict[str, list[float]] = {name: [] for name in calls}
    cpu: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(repeats):
        for name, call in calls.items():
            gc.collect()
            start = time.perf_counter(), time.process_time()
            call()
            wall[name].append(time.perf_counter() - start[0])
            cpu[name].append(time.process_time() - start[1])
    return {
        name: Result(
            statistics.median(wall[name]),
            statistics.median(cpu[name]),
            peaks[name],
            sorted(cpu[name]),
        )
        for name in calls
    }


def peak_memory(builder: Builder, threads: int) -> int:
    """Return the bytes that one call takes at its peak, beyond what its inputs take."""
    torch.set_num_threads(threads)
    call = builder()
    call()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    call()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def table(results: dict[str, Result]) -> str:
    """Return a Markdown table; ratios are over the first contender."""
    first = next(iter(results.values()))
    lines = [
        "| contender | wall s | CPU s | peak MB | wall | CPU | memory |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, result in results.items():
        ratios = result.wall / first.wall, result.cpu / first.cpu, result.peak / first.peak
        cells = " | ".join(f"{ratio:.3f} ×" for ratio in ratios)
        lines.append(
            f"| {name} | {result.wall:.3f} | {result.cpu:.3f} | {result.peak / 1e6:.0f} | {cells} |"
        )
    return "\n".join(lines)
