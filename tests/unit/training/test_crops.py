"""Random resized crops: where they lie; the fast pixels against the exact ones."""

import io

import numpy as np
import pytest
from PIL import Image

from mlcd.data.decode import BadImage, Encoded, decode
from mlcd.training.crops import Augment, resized


def pattern(width: int, height: int, seed: int = 0) -> Image.Image:
    """Return noise of all scales, as photographs have it."""
    rng = np.random.default_rng(seed)
    image = np.zeros((height, width, 3))
    for octave in range(1, 8):
        noise = rng.standard_normal((2**octave, 2**octave, 3)) / 2**octave
        scaled = [
            Image.fromarray(noise[..., channel].astype(np.float32)).resize(
                (width, height), Image.Resampling.BICUBIC
            )
            for channel in range(3)
        ]
        image += np.stack([np.asarray(channel) for channel in scaled], axis=-1)
    return Image.fromarray(np.clip(128 + 150 * image, 0, 255).astype(np.uint8))


def encoded(image: Image.Image, kind: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def test_crops_keep_their_area_and_differ_by_epoch_and_image():
    gradient = np.arange(100, dtype=np.uint8)
    image = Image.fromarray(np.stack([np.tile(gradient, (80, 1))] * 3, axis=-1))
    augment = Augment(32, 0.25, True, 7)
    crops = {(e, i): augment(image, e, i).tobytes() for e in range(4) for i in range(4)}
    assert len(set(crops.values())) == 16
    assert crops[2, 3] == Augment(32, 0.25, True, 7)(image, 2, 3).tobytes()
    shares, flips = [], 0
    for index in range(300):
        rng = np.random.default_rng([7, 3, 0, index])
        left, top, right, bottom = augment._box(rng, 100, 80)
        assert 0 <= left < right <= 100 and 0 <= top < bottom <= 80
        assert 0.74 < (right - left) / (bottom - top) < 1.34
        shares.append((right - left) * (bottom - top) / 8000)
        row = augment(image, 0, index)[0, 16].astype(int)
        flips += row[-1] < row[0]
    assert min(shares) >= 0.249 and max(shares) > 0.85
    assert 110 < flips < 190


@pytest.mark.parametrize(
    "size, side, kind",
    [
        ((512, 384), 224, "JPEG"),  # the usual case: whole
        ((900, 1100), 96, "JPEG"),  # decoded at 1/4 or 1/2
        ((512, 384), 224, "PNG"),
        ((90, 120), 224, "JPEG"),  # made larger
        ((31, 500), 64, "JPEG"),  # no ten draws fit
    ],
)
def test_fast_pixels_are_within_a_level_of_the_exact_ones(size, side, kind):
    options = {"quality": 95} if kind == "JPEG" else {}
    data = encoded(pattern(*size), kind, **options)
    exact = Augment(side, 0.3, True, 1)
    fast = exact._replace(fast=True)
    differences = []
    for index in range(12):
        pixels = fast.decoded(data, 0, index)
        assert pixels.shape == (3, side, side) and pixels.dtype == np.uint8
        assert np.array_equal(pixels, fast.decoded(data, 0, index))
        differences.append(np.abs(pixels.astype(int) - exact.decoded(data, 0, index)).mean())
    assert np.mean(differences) < 1
    # Another image's crop is another matter.
    assert np.abs(fast.decoded(data, 0, 0).astype(int) - exact.decoded(data, 0, 1)).mean() > 2


def test_only_jpegs_that_leave_twice_the_pixels_are_decoded_smaller():
    augment = Augment(64, 1.0, False, 0, fast=True)
    boxes = {255: 1, 256: 2, 511: 2, 512: 4, 1024: 8, 5000: 8}
    assert {side: augment._shrink((0, 0, side, 9999)) for side in boxes} == boxes
    assert Encoded(encoded(pattern(32, 32), "PNG"), max_pixels=10**6).jpeg_size is None


def test_a_jpeg_that_lies_on_its_side_is_cropped_upright():
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(pattern(400, 200), quality=95, exif=exif)
    assert Encoded(data, max_pixels=10**6).jpeg_size == (200, 400)
    exact = Augment(32, 0.3, True, 0)
    for index in range(4):
        pixels = exact._replace(fast=True).decoded(data, 0, index)
        assert np.abs(pixels.astype(int) - exact.decoded(data, 0, index)).mean() < 2
    with pytest.raises(BadImage, match="damaged"):
        exact._replace(fast=True).decoded(data[:-500], 0, 0)


def test_an_image_in_several_pieces_of_memory_is_resized_alike():
    """Over 16 MB Pillow's memory is no single piece, and is copied instead."""
    image = pattern(300, 200).resize((2600, 2100))
    box = (700.3, 401.2, 1500.9, 1300.7)
    small = image.crop((300, 200, 1900, 1600))
    found = resized(image, box, 96).numpy()
    moved = resized(small, (400.3, 201.2, 1200.9, 1100.7), 96).numpy()
    assert np.array_equal(found, moved)


def test_smaller_decoding_keeps_the_table_of_colors():
    gray = encoded(pattern(256, 256).convert("L"), quality=95)
    image = Encoded(gray, max_pixels=10**6).decode(4)
    assert (image.mode, image.size, image.info) == ("RGB", (64, 64), {})
    whole = decode(gray, max_pixels=10**6).resize((64, 64), Image.Resampling.BOX)
    assert np.abs(np.asarray(image).astype(int) - np.asarray(whole)).mean() < 4
