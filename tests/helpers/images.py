"""Images of kinds that few programs write, and tars of members."""

from __future__ import annotations

import io
import struct
import tarfile

import numpy as np
from PIL import Image

from helpers.builders import add_member


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gray(values, dtype) -> Image.Image:
    return Image.fromarray(np.array([values], dtype))


def twelve_bits(values: list[int]) -> bytes:
    """A TIFF of one row, 12 bits a pixel, white 4095; Pillow reads it and does not write it."""
    row = "".join(f"{value:012b}" for value in values)
    data = int(row, 2).to_bytes(len(row) // 8, "big")
    shorts = {256: len(values), 257: 1, 258: 12, 259: 1, 262: 1, 277: 1, 278: 1}
    longs = {273: 8 + 2 + 9 * 12 + 4, 279: len(data)}
    tags = sorted(
        [(t, 3, 1, v) for t, v in shorts.items()] + [(t, 4, 1, v) for t, v in longs.items()]
    )
    entries = b"".join(struct.pack("<HHII", *tag) for tag in tags)
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4) + data


def pack(path, *members):
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            add_member(tar, name, data)
    return path
