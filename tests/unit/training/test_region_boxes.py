"""Boxes in random crops: against a box that is drawn into an image, cropped with it, and found."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mlcd.training.crops import Augment
from mlcd.training.region_boxes import seen

#: Width, height, and left, top, right, bottom of a box in pixels.
CASES = [
    (400, 300, (100, 60, 220, 200)),
    (300, 400, (10, 200, 160, 390)),
    (512, 384, (300, 20, 500, 180)),
]


def drawn(width: int, height: int, box: tuple[int, ...]) -> Image.Image:
    image = Image.new("RGB", (width, height))
    ImageDraw.Draw(image).rectangle((box[0], box[1], box[2] - 1, box[3] - 1), fill="white")
    return image


def edges(pixels: np.ndarray) -> np.ndarray:
    """Return the box of what is bright in uint8 [3, side, side], as shares; zeros for nothing."""
    bright = pixels[0] > 127
    if not bright.any():
        return np.zeros(4)
    rows, columns = np.flatnonzero(bright.any(axis=1)), np.flatnonzero(bright.any(axis=0))
    found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
    return np.array(found) / pixels.shape[1]


@pytest.mark.parametrize("fast", [False, True])
@pytest.mark.parametrize(("width", "height", "box"), CASES)
def test_a_box_lies_where_the_crop_shows_what_was_drawn(width, height, box, fast):
    image = drawn(width, height, box)
    shares = np.array([box], np.float32) / [width, height, width, height]
    augment = Augment(96, 0.25, True, seed=3, fast=fast)
    kept = 0
    for index in range(40):
        crop, flipped = augment.view(width, height, 2, index)
        found, good = seen(shares, (width, height), crop, flipped=flipped, places=(6, 6))
        pixels = augment(image, 2, index)
        shown = edges(pixels)
        area = (np.minimum(box[2:], crop[2:]) - np.maximum(box[:2], crop[:2])).clip(0).prod()
        half = area >= 0.5 * (box[2] - box[0]) * (box[3] - box[1])
        if good[0]:
            assert half
            # To the blur of an edge, a pixel of the crop.
            assert np.abs(found[0] - shown).max() <= 1.5 / 96, (index, found, shown)
            kept += 1
        elif half:
            assert min(shown[2] - shown[0], shown[3] - shown[1]) < 1 / 6 + 1.5 / 96
    assert 5 < kept < 40, "some crops show the box and some do not"


def test_what_is_left_of_a_box_decides():
    crop = (100.0, 0.0, 200.0, 100.0)
    boxes = np.array(
        [
            [0.50, 0.0, 1.00, 1.0],  # the whole crop
            [0.30, 0.0, 0.69, 1.0],  # less than half of it
            [0.30, 0.0, 0.71, 1.0],  # more than half
            [0.00, 0.0, 0.45, 1.0],  # nothing
            [0.60, 0.2, 0.70, 0.44],  # less than a place high
            [0.60, 0.2, 0.85, 0.45],  # a place high, two wide
        ]
    )
    found, good = seen(boxes, (200, 100), crop, flipped=False, places=(4, 4))
    assert good.tolist() == [True, False, True, False, False, True]
    assert found[0].tolist() == [0, 0, 1, 1]
    assert found[2] == pytest.approx([0, 0, 0.42, 1], abs=1e-6)
    assert found[5] == pytest.approx([0.2, 0.2, 0.7, 0.45], abs=1e-6)
    mirrored, again = seen(boxes, (200, 100), crop, flipped=True, places=(4, 4))
    assert again.tolist() == good.tolist()
    assert mirrored[5] == pytest.approx([0.3, 0.2, 0.8, 0.45], abs=1e-6)
    none, nothing = seen(np.zeros((0, 4)), (200, 100), crop, flipped=True, places=(4, 4))
    assert none.shape == (0, 4) and nothing.shape == (0,)
