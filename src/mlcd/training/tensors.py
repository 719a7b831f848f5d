"""What the tasks of training share: seeds by position in the run, copies in main memory."""

from __future__ import annotations

import numpy as np
import torch


def draw(*identity: int) -> int:
    """Return a 63-bit seed that is a function of the numbers alone."""
    return int(np.random.SeedSequence(identity).generate_state(1, np.uint64)[0] >> np.uint64(1))


def cpu_copy(tensor: torch.Tensor) -> torch.Tensor:
    """Return a copy in main memory that training no longer touches."""
    return tensor.detach().to("cpu", copy=True)
