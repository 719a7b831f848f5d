"""Decoding of strangers' images: each kind of damage has its word, and bombs stay closed."""

import numpy as np
import pytest
from PIL import Image

from helpers.builders import jpeg, png_header
from helpers.images import encoded, gray, twelve_bits
from mlcd.data.decode import BadImage, Encoded, decode

LIMIT = 1_000_000


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


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
def test_sixteen_bits_are_scaled_to_eight(kind):
    data = encoded(gray([0, 100 * 257, 100 * 257 + 128, 101 * 257 - 128, 65535], np.uint16), kind)
    image = np.asarray(decode(data, max_pixels=LIMIT))
    assert image[0].tolist() == [[level] * 3 for level in (0, 100, 100, 101, 255)]


def test_big_endian_and_signed_sixteen_bits_too():
    big = Image.frombytes("I;16B", (3, 1), np.array([0, 257 * 7, 65535], ">u2").tobytes())
    wide = gray([0, 257 * 7, 65535], np.int32)
    for image in (big, wide):
        pixels = np.asarray(decode(encoded(image, "TIFF"), max_pixels=LIMIT))
        assert pixels[0, :, 0].tolist() == [0, 7, 255]


def test_twelve_bits_are_scaled_to_eight():
    image = np.asarray(decode(twelve_bits([0, 4095, 2056, 4095]), max_pixels=LIMIT))
    assert image[0, :, 0].tolist() == [0, 255, 128, 255]


def test_sixteen_bit_transparency_is_white_and_no_other_level():
    data = encoded(gray([300, 301, 65535], np.uint16), "PNG", transparency=300)
    assert np.asarray(decode(data, max_pixels=LIMIT))[0, :, 0].tolist() == [255, 1, 255]


@pytest.mark.parametrize(
    "image",
    [gray([0.0, 0.5, 1.0], np.float32), gray([0, 70_000], np.int32), gray([-5, 9], np.int32)],
)
def test_gray_without_a_known_white_is_refused(image):
    with pytest.raises(BadImage) as caught:
        decode(encoded(image, "TIFF"), max_pixels=LIMIT)
    assert caught.value.reason == "not_an_image"


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
    frames = [Image.new("RGB", (8, 8), color) for color in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert decode(data, max_pixels=LIMIT).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"restart_marker_blocks": 4}])
def test_a_look_finds_what_a_whole_decoding_finds(mode, options):
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize((160, 120))
    data = encoded(noise.convert(mode), "JPEG", quality=85, **options)

    def told(data: bytes, way: str) -> object:
        try:
            image = Encoded(data, max_pixels=LIMIT)
            return image.looked_at() if way == "look" else image.decode().size
        except BadImage as error:
            return error.reason

    damaged = [data, *(data[: int(rng.integers(2, len(data)))] for _ in range(10))]
    for _ in range(20):
        start = int(rng.integers(2, len(data) - 300))
        other = rng.integers(0, 256, 300, dtype=np.uint8).tobytes()
        damaged += [data[:start] + other + data[start + 300 :], data[:start] + data[start + 9 :]]
    found = [told(each, "look") for each in damaged]
    assert found == [told(each, "decode") for each in damaged]
    assert found[0] == (160, 120)
    assert "damaged" in found[1:]


def test_a_look_says_the_upright_size_of_every_format_and_of_small_images():
    for side in (1, 3, 15, 16, 63, 64):
        for kind in ("JPEG", "PNG"):
            data = encoded(Image.new("RGB", (side, 70), "red"), kind)
            assert Encoded(data, max_pixels=LIMIT).looked_at() == (side, 70)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded(Image.new("RGB", (90, 70), "red"), "JPEG", exif=exif)
    assert Encoded(turned, max_pixels=LIMIT).looked_at() == (70, 90)
    assert decode(turned, max_pixels=LIMIT).size == (70, 90)
