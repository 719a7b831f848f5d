"""The learning rate over a run: linear warm-up, then a decay to zero."""

from __future__ import annotations

import math


def factor(step: int, total: int, warmup: int, schedule: str) -> float:
    """Return the share of the peak learning rate at `step` (0 … `total` − 1), in (0, 1].

    Warm-up rises linearly and reaches the peak at step `warmup` − 1; at most half of a short run
    is warm-up. Then `schedule` is ``cosine`` or ``linear`` (toward 0 after the last step) or
    ``constant``.
    """
    warmup = min(warmup, total // 2)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "linear":
        return 1 - progress
    return 1.0
