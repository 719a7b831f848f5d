"""A table of contenders with the goal beside the figure."""

from __future__ import annotations

import measure


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
