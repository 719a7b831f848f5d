"""The table of mlcd.data.decode, row by row, as served and at an image size in every mode."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers.images import encoded, gray, twelve_bits
from mlcd.config import Download
from mlcd.data.decode import BadImage, decode
from mlcd.data.preprocess import Preprocess
from mlcd.stages.download.reasons import OWN
from mlcd.stages.download.resizer import Resizer

LIMIT = 1_000_000
#: 16 × 16: a color that 16 bits, alpha, palettes and CMYK all can hold.
SIDE = 16


def png(depth: int, color: int, row: bytes, extra: bytes = b"", height: int = SIDE) -> bytes:
    """A PNG of any bit depth whose rows are all `row`; Pillow writes only some of them."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    width = len(row) * 8 // (depth * channels)
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    body = zlib.compress((b"\0" + row) * height)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + extra
        + chunk(b"IDAT", body)
        + chunk(b"IEND", b"")
    )


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def words(*values: int) -> bytes:
    return struct.pack(f">{len(values)}H", *values) * SIDE


def flat(mode: str, color: Any, kind: str, **options: Any) -> bytes:
    return encoded(Image.new(mode, (SIDE, SIDE), color), kind, **options)


def palette(transparency: int | bytes | None) -> bytes:
    image = Image.new("P", (SIDE, SIDE), 1)
    image.putpalette([0, 0, 0, 70, 140, 210])
    options = {} if transparency is None else {"transparency": transparency}
    return encoded(image, "PNG", **options)


#: The flat image's bytes → its color by the table.
FLAT = {
    "gray1-black": (png(1, 0, b"\0" * 2), (0, 0, 0)),
    "gray1-white": (png(1, 0, b"\xff" * 2), (255, 255, 255)),
    "gray2": (png(2, 0, b"\x55" * 4), (85, 85, 85)),
    "gray4": (png(4, 0, b"\x55" * 8), (85, 85, 85)),
    "gray8": (flat("L", 70, "PNG"), (70, 70, 70)),
    "gray16": (png(16, 0, words(70 * 257)), (70, 70, 70)),
    "gray16-tiff": (encoded(Image.new("I;16", (SIDE, SIDE), 70 * 257), "TIFF"), (70, 70, 70)),
    "gray12-tiff": (twelve_bits([70 * 16 + 4] * SIDE), (70, 70, 70)),
    "gray32-tiff": (flat("I", 70 * 257, "TIFF"), (70, 70, 70)),
    "rgb8": (flat("RGB", (70, 140, 210), "PNG"), (70, 140, 210)),
    "rgb16": (png(16, 2, words(70 * 257, 140 * 257, 210 * 257)), (70, 140, 210)),
    "gray-alpha8": (flat("LA", (0, 51), "PNG"), (204, 204, 204)),
    "gray-alpha16": (png(16, 4, words(0, 51 * 257)), (204, 204, 204)),
    "rgba8": (flat("RGBA", (255, 0, 0, 51), "PNG"), (255, 204, 204)),
    "rgba16": (png(16, 6, words(65535, 0, 0, 51 * 257)), (255, 204, 204)),
    "palette": (palette(None), (70, 140, 210)),
    "palette-transparent": (palette(1), (255, 255, 255)),
    "palette-alpha": (palette(b"\xff\0"), (255, 255, 255)),
    "cmyk": (flat("CMYK", (185, 115, 45, 0), "TIFF"), (70, 140, 210)),
    "cmyk-jpeg": (flat("CMYK", (185, 115, 45, 0), "JPEG", quality=100), (70, 140, 210)),
    "ycbcr-jpeg": (flat("RGB", (70, 140, 210), "JPEG", quality=100), (70, 140, 210)),
    "ycbcr-tiff": (flat("YCbCr", (128, 128, 128), "TIFF"), (128, 128, 128)),
    "webp": (flat("RGBA", (255, 0, 0, 51), "WEBP", lossless=True), (255, 204, 204)),
    "gif": (flat("RGB", (70, 140, 210), "GIF"), (70, 140, 210)),
    "bmp": (flat("RGB", (70, 140, 210), "BMP"), (70, 140, 210)),
    "color-gray1": (png(1, 0, b"\xff" * 2, chunk(b"tRNS", b"\0\1")), (255, 255, 255)),
    "color-gray2": (png(2, 0, b"\x55" * 4, chunk(b"tRNS", b"\0\1")), (255, 255, 255)),
    "color-gray4": (png(4, 0, b"\x55" * 8, chunk(b"tRNS", b"\0\5")), (255, 255, 255)),
    "color-rgb16": (
        png(16, 2, words(9000, 0, 0), chunk(b"tRNS", struct.pack(">3H", 9000, 0, 0))),
        (255, 255, 255),
    ),
    "not-that-rgb16": (
        png(16, 2, words(9000, 0, 0), chunk(b"tRNS", struct.pack(">3H", 0, 0, 0))),
        (35, 0, 0),
    ),
}  # fmt: skip


def close(pixels: np.ndarray, color: tuple[int, ...], levels: int) -> bool:
    return int(np.abs(pixels.astype(int) - color).max()) <= levels


@pytest.mark.parametrize("name", FLAT)
def test_colors(name: str) -> None:
    data, color = FLAT[name]
    # JPEG's own rounding.
    assert close(np.asarray(decode(data, max_pixels=LIMIT)), color, 3 if "jpeg" in name else 0)


@pytest.mark.parametrize("mode", ["keep_ratio", "center_crop", "border"])
@pytest.mark.parametrize("name", FLAT)
def test_what_is_stored_is_what_was_decoded(name: str, mode: str) -> None:
    data, color = FLAT[name]
    stored, width, height, *before, error = Resizer(Download(image_size=24, resize_mode=mode))(
        io.BytesIO(data)
    )
    image = decode(stored, max_pixels=LIMIT)
    assert error is None and stored[:2] == b"\xff\xd8" and image.size == (width, height)
    assert before == list(decode(data, max_pixels=LIMIT).size)
    pixels = np.asarray(image)
    if name == "gray12-tiff" and mode == "border":  # it is one row high
        pixels = pixels[12:13]
    assert close(pixels, color, 8 if pixels.shape[0] == 1 else 4)


def test_bytes_as_served_stay() -> None:
    for data, _ in FLAT.values():
        assert Resizer(Download(image_size=None))(io.BytesIO(data))[0] == data


def test_white_as_zero_is_inverted() -> None:
    image = Image.fromarray(np.array([[0, 257 * 7, 65535]], np.uint16))
    plain = bytearray(encoded(image, "TIFF"))
    tag = plain.index(struct.pack("<HHIH", 262, 3, 1, 1))
    plain[tag + 8] = 0
    assert np.asarray(decode(bytes(plain), max_pixels=LIMIT))[0, :, 0].tolist() == [255, 248, 0]


def test_other_color_spaces_are_no_images() -> None:
    with pytest.raises(BadImage, match="LAB") as caught:
        decode(flat("LAB", (128, 0, 0), "TIFF"), max_pixels=LIMIT)
    assert caught.value.reason == "not_an_image"
    with pytest.raises(BadImage):
        decode(encoded(gray([0.5], np.float32), "TIFF"), max_pixels=LIMIT)


#: What an upright 2 × 3 image looks like as stored with each orientation.
STORED = {
    1: lambda a: a, 2: lambda a: a[:, ::-1], 3: lambda a: a[::-1, ::-1], 4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2), 6: lambda a: np.rot90(a), 8: lambda a: np.rot90(a, 3),
    7: lambda a: np.rot90(a.transpose(1, 0, 2), 2),
}  # fmt: skip


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF", "JPEG"])
@pytest.mark.parametrize("orientation", STORED)
def test_orientation_is_applied_and_not_stored(orientation: int, kind: str) -> None:
    upright = np.zeros((32, 48, 3), np.uint8)
    upright[:16, :16], upright[:16, 32:], upright[16:, :16] = (240, 9, 9), (9, 240, 9), (9, 9, 240)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"quality": 100, "subsampling": 0}}
    stored = Image.fromarray(np.ascontiguousarray(STORED[orientation](upright)))
    data = encoded(stored, kind, exif=exif, **options.get(kind, {}))
    image = decode(data, max_pixels=LIMIT)
    assert image.size == (48, 32)
    assert np.abs(np.asarray(image).astype(int) - upright).mean() < 3
    resized, width, height, *before, _ = Resizer(Download(image_size=32))(io.BytesIO(data))
    assert (width, height, *before) == (48, 32, 48, 32)
    with Image.open(io.BytesIO(resized)) as opened:
        assert opened.getexif().get(0x0112) is None
        assert np.abs(np.asarray(opened).astype(int) - upright).mean() < 6


def test_damaged_exif_is_no_orientation_and_profiles_are_ignored() -> None:
    image = Image.new("RGB", (8, 4), "red")
    data = encoded(image, "PNG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff", icc_profile=b"no profile")
    decoded = decode(data, max_pixels=LIMIT)
    assert decoded.size == (8, 4) and decoded.getpixel((0, 0)) == (255, 0, 0)
    assert not decoded.info
    with Image.open(io.BytesIO(Resizer(Download(image_size=4))(io.BytesIO(data))[0])) as stored:
        assert not {"icc_profile", "exif", "comment"} & set(stored.info)


def thin(width: int, height: int) -> bytes:
    return encoded(Image.new("RGB", (width, height), "red"), "PNG")


@pytest.mark.parametrize(("width", "height"), [(3000, 1), (1, 65_000), (600, 1), (100, 3)])
@pytest.mark.parametrize("mode", ["keep_ratio", "center_crop", "border"])
def test_work_on_thin_images_is_bounded(
    width: int, height: int, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    resize = Image.Image.resize
    monkeypatch.setattr(
        Image.Image, "resize", lambda *a, **k: made.append(resize(*a, **k)) or made[-1]
    )
    resizer = Resizer(Download(image_size=64, resize_mode=mode))
    _, *size, _, _, error = resizer(io.BytesIO(thin(width, height)))
    assert all(image.width * image.height <= 64 * 64 for image in made)
    if mode == "keep_ratio":
        assert error == f"{OWN}too_thin"
    else:
        assert error is None and size == [64, 64]


def test_keep_ratio_ends_where_the_result_would_be_too_long() -> None:
    resizer = Resizer(Download(image_size=64))
    assert resizer(io.BytesIO(thin(320, 10)))[1:3] == (2048, 64)
    assert resizer(io.BytesIO(thin(321, 10)))[-1] == f"{OWN}too_thin"
    # The result has a limit of its own: 30 times as long are more pixels than are allowed.
    small = Resizer(Download(image_size=64, max_pixels=64 * 64 * 20))
    assert small(io.BytesIO(thin(300, 10)))[-1] == f"{OWN}too_thin"
    assert small(io.BytesIO(thin(150, 10)))[-1] is None


@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_preprocessing_of_thin_images_is_bounded(mode: str) -> None:
    pixels = Preprocess((64, 64), (0, 0, 0), (1, 1, 1), resize_mode=mode)
    image = Image.new("RGB", (65_000, 1), "red")
    assert pixels(image).shape == (64, 64, 3)
    assert max(pixels._scaled(*pixels._without_far_ends(image).size)) <= 32 * 64
