"""Photographs for composed scenes, in whose place noise stands."""

from pathlib import Path

import numpy as np
from PIL import Image


def noise_grounds(folder: Path, count: int = 4) -> Path:
    """Write `count` images of 260 × 260 pixels into a new folder, and return it."""
    folder.mkdir()
    for number in range(count):
        pixels = np.random.default_rng(number).integers(0, 256, (260, 260, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder
