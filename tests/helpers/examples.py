"""What examples of the docs call."""

from __future__ import annotations

import os


def function(n: int) -> list[int]:
    """Return `n` and the number of ranks."""
    return [n, int(os.environ["WORLD_SIZE"])]
