"""A decoder that takes time and no processor: for `input.py overlap`, whose workers import it."""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Sleeping:
    """Sleeps for `seconds`, then returns uint8 [side, side, 3]."""

    seconds: float
    side: int

    def __call__(self, data: bytes) -> np.ndarray:
        time.sleep(self.seconds)
        return np.full((self.side, self.side, 3), data[0], np.uint8)
