"""Features before the projection, of each kind of encoder."""

from __future__ import annotations

import pytest
import torch

from helpers import open_clip_tiny
from mlcd.models import frozen, trainable, unprojected


@pytest.mark.parametrize(
    ("model", "dim", "width"),
    [
        ("resnet10t", 16, 512),
        ("test_vit", 8, 64),
        ("mlcd_vit_tiny_patch8", 16, 192),
        (f"open_clip:{open_clip_tiny.NAME}", 24, 32),
    ],
)
def test_a_trained_encoder_gives_its_width(model, dim, width):
    encoder = trainable.build(model, dim, 32, seed=1).eval()
    images = torch.randn(3, 3, 32, 32)
    with torch.no_grad():
        embedding, pooled = unprojected.of_encoder(encoder, images)
        # By slices of another number of images.
        torch.testing.assert_close(embedding, encoder(images), rtol=1e-5, atol=1e-5)
    assert (embedding.shape, pooled.shape) == ((3, dim), (3, width))


def test_an_encoder_without_a_projection_has_one_kind_of_features():
    encoder = trainable.build("mlcd_vit_tiny_patch8", 192, 32).eval()
    assert unprojected.of_encoder(encoder, torch.randn(2, 3, 32, 32))[1] is None


def test_a_frozen_encoder_gives_rows_before_projection_or_normalization():
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8)
    clip = frozen.load(open_clip_tiny.NAME)
    projection = clip._model.visual.proj
    unit, pooled = unprojected.of_frozen(clip, pixels)
    assert torch.equal(unit, clip.encode_images(pixels))
    assert clip._model.visual.proj is projection
    expected = torch.nn.functional.normalize(pooled @ projection, dim=1)
    torch.testing.assert_close(unit, expected, rtol=1e-4, atol=1e-5)
    assert pooled.shape == (3, 32)
    lite = frozen.load("efficientnet_lite0", image_size=32)
    unit, raw = unprojected.of_frozen(lite, pixels)
    assert torch.equal(unit, lite.encode_images(pixels))
    again = torch.nn.functional.normalize(raw, dim=1)
    torch.testing.assert_close(unit, again, rtol=1e-5, atol=1e-6)
    assert (raw.norm(dim=1) - 1).abs().min() > 0.1
