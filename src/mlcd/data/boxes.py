"""Boxes in images: x0, y0, x1, y1 from the upper left, x1 and y1 exclusive."""

from __future__ import annotations

import numpy as np


def whole_pixels(boxes: np.ndarray, width: int, height: int) -> np.ndarray:
    """Return float boxes [n, 4], in pixels, as int64 [n, 4]: rounded outward, cut at the image.

    What lies outside the image is left with no area.
    """
    ends = np.array([width, height], np.float64)
    low = np.clip(np.floor(boxes[:, :2]), 0, ends)
    high = np.clip(np.ceil(boxes[:, 2:]), 0, ends)
    return np.concatenate([low, high], axis=1).astype(np.int64)


def areas(boxes: np.ndarray) -> np.ndarray:
    """Return the areas [n] of boxes [n, 4]; those without any have 0."""
    sides = np.maximum(boxes[:, 2:] - boxes[:, :2], 0)
    area: np.ndarray = sides[:, 0] * sides[:, 1]
    return area


def overlaps(box: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return intersection over union, float64 [n], of a box [4] with boxes [n, 4], all of area."""
    low = np.maximum(boxes[:, :2], box[:2])
    high = np.minimum(boxes[:, 2:], box[2:])
    common = areas(np.concatenate([low, high], axis=1)).astype(np.float64)
    share: np.ndarray = common / (areas(box[None])[0] + areas(boxes) - common)
    return share


def distinct(
    boxes: np.ndarray, max_overlap: float, *, apart: np.ndarray, most: int | None = None
) -> np.ndarray:
    """Return for each of `boxes` [n, 4] the number of the box that stands for it, int64 [n].

    The first of several near-equal ones stands for them: those that overlap it by `max_overlap` at
    least. −1 for a box that is near-equal to one of `apart` [m, 4], and for all that come after
    `most` boxes that stand for themselves.
    """
    owner = np.full(len(boxes), -1, np.int64)
    kept, numbers = np.empty((len(apart) + len(boxes), 4)), np.empty(len(apart) + len(boxes), int)
    kept[: len(apart)], numbers[: len(apart)] = apart, -1
    count = len(apart)
    for number, box in enumerate(boxes):
        if count:
            share = overlaps(box, kept[:count])
            nearest = int(np.argmax(share))
            if share[nearest] >= max_overlap:
                owner[number] = numbers[nearest]
                continue
        if count - len(apart) == most:
            break
        kept[count], numbers[count], owner[number] = box, number, number
        count += 1
    return owner
