"""The few collectives that stages share."""

from __future__ import annotations

import torch
import torch.distributed as dist


def all_sum(values: list[float], device: torch.device) -> list[float]:
    """Return the sum over all ranks of each value, in float64."""
    tensor = torch.tensor(values, dtype=torch.float64, device=device)
    dist.all_reduce(tensor)
    return tensor.tolist()
