"""Small sets of images with masks and boxes, in the formats that evaluate reads."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

#: Class → color: class 1 is the first.
COLORS = {"red": (220, 30, 30), "green": (30, 200, 40), "blue": (40, 60, 230)}
SIDE = 48


def scene(seed: int) -> tuple[np.ndarray, np.ndarray, list[dict]]:
    """Return an image of one or two colored rectangles on gray, its mask, and its objects."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(110, 140, (SIDE, SIDE, 3), dtype=np.uint8)
    mask = np.zeros((SIDE, SIDE), np.uint8)
    places, objects = [], []
    for number in range(1 + seed // 4 % 2):
        kind = (seed + number) % 3
        width, height = (8 * int(rng.integers(2, 4)) for _ in range(2))
        left = 8 * int(rng.integers(0, (SIDE - width) // 8 + 1))
        top = 8 * int(rng.integers(0, (SIDE - height) // 8 + 1))
        pixels[top : top + height, left : left + width] = list(COLORS.values())[kind]
        mask[top : top + height, left : left + width] = kind + 1
        places.append((left, top, width, height, kind))
    for left, top, width, height, kind in places:
        inside = mask[top : top + height, left : left + width] == kind + 1
        objects.append(
            {
                "class": list(COLORS)[kind], "class_id": kind + 1, "visible": float(inside.mean()),
                "x0": float(left), "y0": float(top),
                "x1": float(left + width), "y1": float(top + height),
            }
        )  # fmt: skip
    return pixels, mask, objects


def write_scenes(folder: Path, count: int = 36) -> Path:
    """Write a folder of kind `scenes`; every fourth image is test, of all classes."""
    rows, splits = [], []
    for side in ("images", "masks"):
        (folder / side).mkdir(parents=True)
    for number in range(count):
        pixels, mask, objects = scene(number)
        stem = f"{number:05d}"
        Image.fromarray(pixels).save(folder / "images" / f"{stem}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{stem}.png")
        rows += [{"image": stem, **one} for one in objects]
        splits.append({"image": stem, "split": "test" if number % 4 == 0 else "train"})
    pq.write_table(pa.Table.from_pylist(rows), folder / "objects.parquet")
    pq.write_table(pa.Table.from_pylist(splits), folder / "split.parquet")
    return folder


def png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()
