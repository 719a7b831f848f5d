"""Layers of an encoder in order: rates that fall towards the first, and those that stand still."""

from __future__ import annotations

import pytest
import torch

from mlcd.models import layers, trainable
from mlcd.models.footprint import measure
from mlcd.training.zero import parameter_groups
from mlcd.utils.errors import UserError

#: Model → number of layers; a weight of the first, of the second, and of the last.
MODELS = {
    "test_vit": (7, "patch_embed.proj.weight", "blocks.0.attn.qkv.weight", "norm.weight"),
    "test_resnet": (5, "conv1.0.weight", "layer1.0.conv1.weight", "layer4.0.bn2.weight"),
    "open_clip:tiny-for-tests": (
        4, "positional_embedding", "transformer.resblocks.0.ln_1.weight", "proj"
    ),
    "mlcd_vit_tiny_patch8": (8, "class_angle", "blocks.0.qkv.weight", "norm_out.bias"),
    "open_clip:RN50": (18, "conv1.weight", "layer1.0.conv1.weight", "attnpool.c_proj.weight"),
}  # fmt: skip


def build(model):
    with torch.device("meta"):
        return trainable.build(model, 16, 32 if model != "open_clip:RN50" else 64)


@pytest.mark.parametrize("model", MODELS)
def test_layers_are_numbered_from_the_stem(model):
    encoder = build(model)
    found = layers.numbers(encoder)
    count, *names = MODELS[model]
    assert set(found.values()) == set(range(count))
    assert [found[f"trunk.{name}"] for name in names] == [0, 1, count - 1]
    assert found.keys() == dict(encoder.named_parameters()).keys()
    assert found.get("projection.weight", count - 1) == count - 1


def test_rates_fall_by_the_layer():
    encoder = build("test_vit")
    scales = layers.lr_scales(encoder, 0.5)
    assert scales["trunk.norm.weight"] == scales["projection.weight"] == 1
    assert scales["trunk.blocks.4.mlp.fc1.bias"] == 0.5
    assert scales["trunk.patch_embed.proj.weight"] == 0.5**6
    groups = parameter_groups(encoder, 0.1, scales)
    assert sum(len(group["params"]) for group in groups) == len(list(encoder.parameters()))
    for group in groups:
        assert len({weight.ndim >= 2 for weight in group["params"]}) == 1
    assert {group["lr_scale"] for group in groups} == {0.5**power for power in range(7)}
    # Without it there are two, as ever.
    assert [group["lr_scale"] for group in parameter_groups(encoder, 0.1)] == [1, 1]


def test_frozen_layers_keep_weights_and_statistics():
    encoder = trainable.build("test_resnet", 8, 32)
    layers.freeze(encoder, 3)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    encoder.train()(torch.randn(4, 3, 32, 32)).sum().backward()
    numbers = layers.numbers(encoder)
    for name, weight in encoder.named_parameters():
        assert (weight.grad is None) == (numbers[name] < 3)
    moved = {
        name.rsplit(".", 1)[0]
        for name, value in encoder.state_dict().items()
        if name.endswith("running_mean") and not torch.equal(value, before[name])
    }
    assert moved == {
        n[:-7] for n in numbers if n[:-7] + ".running_mean" in before and numbers[n] > 2
    }


def test_all_layers_cannot_be_frozen():
    with pytest.raises(UserError, match=r"test_vit has 7 layers, .* set it to 6 or less"):
        layers.freeze(build("test_vit"), 7)


def test_frozen_layers_count_as_weights_that_are_not_trained():
    encoder = build("test_vit")
    layers.freeze(encoder, 4)
    found = measure(encoder, bf16=False)
    trained = sum(weight.numel() for weight in encoder.parameters() if weight.requires_grad)
    whole = sum(weight.numel() for weight in encoder.parameters())
    assert (found.weights, found.buffers) == (trained, 4 * (whole - trained))
