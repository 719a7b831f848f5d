"""A row of the table of `make bench`: our figures beside those of the best peer, and the goal.

A benchmark calls :func:`state` for each row after it has measured all contenders in turn.
benchmarks/bench.py collects the lines.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

MARK = "goal: "


def state(
    row: str,
    ours: Sequence[float],
    peers: Mapping[str, Sequence[float]],
    limit: float,
    *,
    unit: str = "CPU s",
    more_is_better: bool = False,
) -> bool:
    """Print a row and return whether the goal is met.

    `ours` and each of `peers` are the measurements of all repeats, in `unit`. The figure is our
    median over the best peer's median. The goal: at most `limit`; at least `limit` where more is
    better.
    """
    medians = {name: statistics.median(values) for name, values in peers.items()}
    if min(*ours, *(value for values in peers.values() for value in values)) <= 0:
        # What is left after a start-up is taken off may be less than the noise of that start.
        print(
            f"{MARK}{row} | {unit} | {_spread(ours)} | – | – | – | – | within the noise", flush=True
        )
        return False
    best = (max if more_is_better else min)(medians, key=lambda name: medians[name])
    ratio = statistics.median(ours) / medians[best]
    met = ratio >= limit if more_is_better else ratio <= limit
    goal = f"{'≥' if more_is_better else '≤'} {limit:.2f} ×"
    cells = [row, unit, _spread(ours), best, _spread(peers[best]), f"{ratio:.2f} ×", goal,
             "met" if met else "**short**"]  # fmt: skip
    print(f"{MARK}{' | '.join(cells)}", flush=True)
    return met


def state_figure(row: str, ours: Sequence[float], limit: float, *, unit: str) -> bool:
    """Print a row whose goal is a figure, at least `limit`, and return whether it is met."""
    met = statistics.median(ours) >= limit
    cells = [row, unit, _spread(ours), "–", "–", "–", f"≥ {limit:g}", "met" if met else "**short**"]
    print(f"{MARK}{' | '.join(cells)}", flush=True)
    return met


def _spread(values: Sequence[float]) -> str:
    """Return median, minimum and maximum with three digits."""
    return f"{statistics.median(values):.3g} ({min(values):.3g} to {max(values):.3g})"
