"""Preprocessing, held to open_clip's."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from helpers.builders import jpeg
from mlcd.data.preprocess import Preprocess

torch.set_num_threads(1)


def random_image(seed: int, side: int = 48) -> Image.Image:
    return Image.open(io.BytesIO(jpeg(seed, side))).convert("RGB")


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [(32, 32), (48, 32)])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_preprocessing_equals_open_clip(resize_mode, size, interpolation):
    import open_clip

    if resize_mode == "shortest" and size[0] != size[1] and interpolation == "bilinear":
        pytest.skip("open_clip takes bicubic here whatever is asked")
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)
    theirs = open_clip.image_transform(
        size, False, mean, std, resize_mode=resize_mode, interpolation=interpolation, fill_color=7
    )
    ours = Preprocess(size, mean, std, resize_mode, interpolation, 7)
    for seed, shape in enumerate([(48, 48), (100, 41), (41, 101), (20, 31), (33, 32), (210, 7)]):
        image = random_image(seed).resize(shape)
        expected = theirs(image)
        pixels = ours(image)
        got = (pixels / np.float32(255) - np.array(mean)) / np.array(std)
        assert pixels.shape == (*size, 3), shape
        # The same pixels: one gray level would be 0.0098 or more.
        assert np.abs(got.transpose(2, 0, 1) - expected.numpy()).max() < 1e-3, shape


def test_long_strip_stays_small():
    pixels = Preprocess((32, 32), (0, 0, 0), (1, 1, 1))(Image.new("RGB", (200_000, 1), "red"))
    assert pixels.shape == (32, 32, 3)
    assert (pixels == [255, 0, 0]).all()
