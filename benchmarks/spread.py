"""A table of contenders with the goal beside the figure, and the machine it was measured on."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path

import measure
import numpy as np
import torch


def machine() -> str:
    """Return a line: CPU, its instruction set as torch uses it, cores, versions, load."""
    names = re.findall(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.M)
    load = " ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{names[0] if names else platform.machine()} ({torch.backends.cpu.get_cpu_capability()}), "
        f"{len(os.sched_getaffinity(0))} cores, load {load}; Python {platform.python_version()}, "
        f"numpy {np.__version__}, torch {torch.__version__}"
    )


def table(
    results: dict[str, measure.Result],
    peer: str,
    goals: dict[str, float],
    *,
    unit: float = 1.0,
    name: str = "s",
) -> str:
    """Return a Markdown table of CPU times in units of `unit` seconds.

    goals: contender → the greatest share of the median of `peer` that it may take.
    """
    lines = [
        f"| contender | CPU {name}: least | median | greatest | peak MB | over {peer} "
        "| goal | met |",
        "|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    for contender, result in results.items():
        times = result.cpus[0], result.cpu, result.cpus[-1]
        cells = " | ".join(f"{time / unit:.3f}" for time in times)
        share = result.cpu / results[peer].cpu
        goal = goals.get(contender)
        wished = " | " if goal is None else f"≤ {goal:g} × | {'yes' if share <= goal else 'no'}"
        lines.append(
            f"| {contender} | {cells} | {result.peak / 1e6:.0f} | {share:.2f} × | {wished} |"
        )
    return "\n".join(lines)
