"""Decoding of strangers' pictures: each kind of damage has its word, and bombs stay closed."""

import io
import struct
import zlib

import numpy as np
import pytest
from builders import jpeg
from PIL import Image

from mlcd.images import BadImage, decode

LIMIT = 1_000_000


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds not one row."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 1 << 20) + b"IDAT"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"<html><body>404</body></html>", "not_an_image"),
        (jpeg(1)[:-200], "damaged"),
        (encoded(Image.new("RGB", (50, 50), "red"), "PNG")[:60], "damaged"),
        (png_header(20_000, 20_000), "too_large"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "not_an_image"),
    ],
)
def test_reasons(data, reason):
    with pytest.raises(BadImage) as caught:
        decode(data, max_pixels=LIMIT)
    assert caught.value.reason == reason


def test_limit_is_on_pixels_and_inclusive():
    data = encoded(Image.new("RGB", (100, 50)), "PNG")
    assert decode(data, max_pixels=5000).size == (100, 50)
    with pytest.raises(BadImage, match="too_large"):
        decode(data, max_pixels=4999)


@pytest.mark.parametrize("mode", ["L", "1", "P", "CMYK", "I;16", "RGBA", "LA"])
def test_every_mode_becomes_rgb(mode):
    kind = "JPEG" if mode == "CMYK" else "PNG"
    image = decode(encoded(Image.new(mode, (9, 7)), kind), max_pixels=LIMIT)
    assert (image.mode, image.size) == ("RGB", (9, 7))


def test_transparency_is_white():
    pixels = np.zeros((2, 2, 4), np.uint8)
    pixels[0, 0] = [10, 20, 30, 255]
    image = np.asarray(decode(encoded(Image.fromarray(pixels), "PNG"), max_pixels=LIMIT))
    assert image[0, 0].tolist() == [10, 20, 30]
    assert (image[1] == 255).all()


def test_palette_transparency_is_white():
    palette = Image.new("P", (2, 1))
    palette.putpalette([0, 0, 0, 200, 0, 0])
    palette.putpixel((1, 0), 1)
    image = decode(encoded(palette, "PNG", transparency=0), max_pixels=LIMIT)
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (200, 0, 0)]


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data, max_pixels=LIMIT).getpixel((0, 0)) == (255, 0, 0)
