"""Boxes of an image as its random crop shows them: moved, cut at the crop, mirrored with it."""

from __future__ import annotations

import numpy as np

#: A box of which less than this share of its area is left in the crop is no region of it.
LEAST_SEEN = 0.5


def seen(
    boxes: np.ndarray,
    size: tuple[int, int],
    crop: tuple[float, float, float, float],
    *,
    flipped: bool,
    places: tuple[int, int],
) -> tuple[np.ndarray, np.ndarray]:
    """Return `boxes` as shares of the crop, float32 [m, 4], and bool [m]: which are regions of it.

    `boxes` [m, 4]: x0, y0, x1, y1 as shares of an image of `size` (width, height) pixels. `crop`:
    left, top, right, bottom in its pixels. A region has :data:`LEAST_SEEN` of its area left, and is
    at least a place of the encoder's map high and wide, which has `places` (rows, columns).
    """
    pixels = boxes.astype(np.float64) * [*size, *size]
    start, extent = np.array(crop[:2]), np.array(crop[2:]) - crop[:2]
    low = np.clip((pixels[:, :2] - start) / extent, 0, 1)
    high = np.clip((pixels[:, 2:] - start) / extent, 0, 1)
    sides = np.maximum(high - low, 0)
    whole = np.prod((pixels[:, 2:] - pixels[:, :2]) / extent, axis=1)
    rows, columns = places
    # What is as large as a place shall not fall to the last bit of a share.
    large = (sides * [columns, rows] >= 1 - 1e-6).all(axis=1)
    good = large & (np.prod(sides, axis=1) >= LEAST_SEEN * whole)
    if flipped:
        low[:, 0], high[:, 0] = 1 - high[:, 0], 1 - low[:, 0]
    return np.concatenate([low, high], axis=1).astype(np.float32), good
