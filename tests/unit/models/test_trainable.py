"""Trainable encoders: built by name and seed, stored and loaded, refused in one line."""

from __future__ import annotations

import json

import pytest
import torch

from helpers.builders import change_record
from mlcd.models import trainable
from mlcd.utils.errors import UserError
from mlcd.utils.records import CHECKSUM, write_record

CASES = [
    ("resnet10t", 16, 32),
    ("test_vit", 24, 48),  # a ViT at another size than its own
    ("open_clip:tiny-for-tests", 8, 64),
    ("mlcd_vit_tiny_patch8", 16, 24),
]


def images(side: int, count: int = 3) -> torch.Tensor:
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(5))


@pytest.mark.parametrize(("model", "dim", "side"), CASES)
def test_gives_one_vector_per_image_and_gradients_to_every_weight(model, dim, side):
    encoder = trainable.build(model, dim, side, seed=1)
    output = encoder(images(side))
    assert output.shape == (3, dim)
    assert output.dtype == torch.float32
    assert len(encoder.mean) == len(encoder.std) == 3
    output.square().sum().backward()
    assert all(parameter.grad is not None for parameter in encoder.parameters())


@pytest.mark.parametrize(("model", "dim", "side"), CASES)
def test_comes_back_from_disk_with_equal_outputs(tmp_path, model, dim, side):
    encoder = trainable.build(model, dim, side, seed=1)
    encoder(images(side))  # moves running statistics, which belong to the state
    trainable.save(encoder, tmp_path, {"steps": 7})
    again = trainable.load(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(images(side)), encoder.eval()(images(side)))
    assert (again.mean, again.std, again.model) == (encoder.mean, encoder.std, model)
    assert trainable.read_description(tmp_path)["steps"] == 7


def test_weights_follow_from_the_seed_and_the_global_state_stays():
    torch.manual_seed(3)
    before = torch.random.get_rng_state()
    first = trainable.build("test_vit", 8, 32, seed=1)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.rand(10)
    again, other = (trainable.build("test_vit", 8, 32, seed=seed) for seed in (1, 2))
    for name, value in first.state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert not torch.equal(first.projection.weight, other.projection.weight)


def test_equal_weights_give_equal_bytes_and_floats_are_stored_in_float32(tmp_path):
    encoder = trainable.build("resnet10t", 8, 32)
    trainable.save(encoder, tmp_path / "a", {})
    trainable.save(encoder.to(torch.float64), tmp_path / "b", {})
    for name in (trainable.WEIGHTS, trainable.DESCRIPTION):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


def test_open_clip_towers_end_in_their_own_projection():
    encoder = trainable.build("open_clip:tiny-for-tests", 24, 64)
    assert not list(encoder.projection.parameters())
    assert encoder.trunk.output_dim == 24


def test_mlcd_vit_needs_no_projection_at_its_own_width():
    for dim, weights in ((192, []), (16, [torch.Size([16, 192])])):
        encoder = trainable.build("mlcd_vit_tiny_patch8", dim, 32)
        assert [weight.shape for weight in encoder.projection.parameters()] == weights


@pytest.mark.parametrize("model", ["resnet10t", "mlcd_vit_tiny_patch8"])
def test_stochastic_depth_is_passed_on(model):
    encoder = trainable.build(model, 8, 32, drop_path=0.5)
    assert any(type(module).__name__ == "DropPath" for module in encoder.modules())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("resnet10x", 8, 32), "train.model: unknown model 'resnet10x'; did you mean resnet10t"),
        (("open_clip:VitB32", 8, 32), "did you mean open_clip:ViT-B-32"),
        (("mlcd_vit_tiny", 8, 32), "did you mean mlcd_vit_tiny_patch8"),
        (("mlcd_vit_base_patch32", 8, 80), "no multiple of the 32 pixels of a patch"),
        (("hf-hub:some/model", 8, 32), "train.model: unknown model"),
        (("test_vit", 8, 3), "train.model: test_vit cannot be built for images of 3 pixels"),
        (("open_clip:RN50", 8, 32, 0.1), "train.drop_path: open_clip:RN50 has no stochastic depth"),
        (("vgg11", 8, 32, 0.1), "train.drop_path: vgg11 has no stochastic depth"),
        (("open_clip:ViT-B-16-SigLIP", 768, 64), "takes 224 pixels only"),
    ],
)
def test_what_cannot_be_built_is_refused_in_one_line(arguments, message):
    with pytest.raises(UserError) as caught:
        trainable.build(*arguments)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_damaged_or_mixed_files_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"encoder\.json: no such file"):
        trainable.load(tmp_path)
    trainable.save(trainable.build("test_vit", 8, 32, seed=1), tmp_path, {})
    weights = tmp_path / trainable.WEIGHTS
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-4] + bytes(4))
    with pytest.raises(UserError, match="not the weights"):
        trainable.load(tmp_path)
    weights.unlink()
    with pytest.raises(UserError, match=r"encoder\.safetensors: no such file"):
        trainable.load(tmp_path)
    weights.write_bytes(whole)
    path = tmp_path / trainable.DESCRIPTION
    description = json.loads(path.read_text())
    change_record(path, embedding_dim=9)
    with pytest.raises(UserError, match="does not fit test_vit"):
        trainable.load(tmp_path)
    left = description.keys() - {"sha256", CHECKSUM}
    write_record(path, {key: description[key] for key in sorted(left)})
    with pytest.raises(UserError, match="sha256 is missing"):
        trainable.load(tmp_path)
