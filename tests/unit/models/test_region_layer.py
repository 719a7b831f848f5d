"""The region layer beside a plain loop over boxes, and an encoder that has one."""

from __future__ import annotations

import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from mlcd.models import region_layer, trainable
from mlcd.models.feature_maps import feature_map, pooled_and_map, trunk_of
from mlcd.models.region_encoder import RegionEncoder, map_shape, with_regions
from mlcd.models.region_layer import RegionLayer, places_inside
from mlcd.utils.errors import UserError
from mlcd.utils.files import read_json

#: A tile, a box between places, one in a corner, one without area, all of the image.
BOXES = [
    (0.0, 0.5, 0.5, 1.0), (0.13, 0.22, 0.61, 0.48), (0.97, 0.98, 1.0, 1.0),
    (0.4, 0.4, 0.4, 0.4), (0.0, 0.0, 1.0, 1.0),
]  # fmt: skip
OWNER = [1, 0, 0, 2, 1]


def plain(layer: RegionLayer, maps: torch.Tensor, box, owner: int) -> torch.Tensor:
    """One box by explicit loops: its places, RoIAlign's points, a softmax for each head."""
    _, channels, height, width = maps.shape
    x0, y0, x1, y1 = box
    inside = {
        (row, column)
        for row in range(height)
        for column in range(width)
        if y0 <= (row + 0.5) / height < y1 and x0 <= (column + 0.5) / width < x1
    }
    inside.add(
        (min(height - 1, int((y0 + y1) / 2 * height)), min(width - 1, int((x0 + x1) / 2 * width)))
    )
    weights = {}
    for i in range(14):
        for j in range(14):
            y = min(max((y0 + (i + 0.5) / 14 * (y1 - y0)) * height - 0.5, 0), height - 1)
            x = min(max((x0 + (j + 0.5) / 14 * (x1 - x0)) * width - 0.5, 0), width - 1)
            for row in {math.floor(y), math.ceil(y)}:
                for column in {math.floor(x), math.ceil(x)}:
                    if (row, column) in inside:
                        share = (1 - abs(y - row)) * (1 - abs(x - column))
                        weights[row, column] = weights.get((row, column), 0) + share
    total = sum(weights.values())
    x = sum(share / total * maps[owner, :, r, c] for (r, c), share in weights.items())
    places = layer.norm_places(torch.stack([maps[owner, :, r, c] for r, c in sorted(inside)]))
    keys, values = layer.key_value(places).chunk(2, dim=1)
    query = layer.query(layer.norm_query(x))
    head = channels // layer.heads
    mixed = []
    for number in range(layer.heads):
        part = slice(number * head, (number + 1) * head)
        scores = keys[:, part] @ query[part] / math.sqrt(head)
        mixed.append(scores.softmax(0) @ values[:, part])
    x = x + layer.out(torch.cat(mixed))
    x = x + layer.fc_2(functional.gelu(layer.fc_1(layer.norm_mlp(x))))
    return layer.norm_out(x)


@pytest.mark.parametrize(("channels", "height", "width"), [(192, 7, 5), (40, 4, 4), (128, 1, 3)])
def test_features_are_those_of_a_plain_loop(channels, height, width):
    layer = RegionLayer(channels, 16, seed=3)
    maps = torch.randn(3, channels, height, width, generator=torch.Generator().manual_seed(1))
    found = layer.features(maps, torch.tensor(BOXES), torch.tensor(OWNER))
    expected = [plain(layer, maps, box, one) for box, one in zip(BOXES, OWNER, strict=True)]
    torch.testing.assert_close(found, torch.stack(expected), atol=1e-5, rtol=1e-4)
    embedded = layer(maps, torch.tensor(BOXES), torch.tensor(OWNER))
    torch.testing.assert_close(embedded, found @ layer.projection.weight.T)


def test_places_are_those_whose_center_lies_inside():
    found = places_inside(torch.tensor([(0.25, 0.0, 0.75, 0.4), (0.3, 0.9, 0.31, 0.91)]), 2, 4)
    assert found.int().tolist() == [
        [[0, 1, 1, 0], [0, 0, 0, 0]],
        [[0, 0, 0, 0], [0, 1, 0, 0]],
    ]


def test_other_places_do_not_reach_a_box_by_the_layer():
    """Not by a bit: not even one that the interpolation at the box's edge would touch."""
    layer = RegionLayer(64, 16)
    maps = torch.randn(1, 64, 4, 4)
    box, owner = torch.tensor([(0.0, 0.0, 0.5, 0.5)]), torch.tensor([0])
    changed = maps.clone()
    changed[:, :, 2:] = 1e6
    changed[:, :, :, 2:] = -1e6
    assert torch.equal(layer(maps, box, owner), layer(changed, box, owner))
    changed[0, 0, 1, 1] += 1
    assert not torch.equal(layer(maps, box, owner), layer(changed, box, owner))


def test_weights_follow_from_the_seed_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, same, other = RegionLayer(64, 8, 1), RegionLayer(64, 8, 1), RegionLayer(64, 8, 2)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.fc_1.weight, same.fc_1.weight)
    assert not torch.equal(one.fc_1.weight, other.fc_1.weight)


@pytest.mark.parametrize(
    ("model", "dim", "side", "shape"),
    [
        ("mlcd_vit_tiny_patch8", 192, 32, (192, 4, 4)), ("test_vit", 16, 64, (64, 4, 4)),
        ("test_resnet", 16, 64, (96, 2, 2)), ("open_clip:ViT-S-16", 16, 32, (384, 2, 2)),
        ("open_clip:ViT-S-16-alt", 16, 32, (384, 2, 2)), ("open_clip:RN50", 32, 64, (2048, 2, 2)),
        ("vit_small_patch14_reg4_dinov2", 16, 56, (384, 4, 4)),
    ],
)  # fmt: skip
def test_one_pass_gives_what_two_give(model, dim, side, shape):
    encoder = trainable.build(model, dim, side, seed=1).eval()
    assert map_shape(encoder) == shape
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        pooled, maps = pooled_and_map(encoder.trunk, images)
        assert torch.equal(pooled, encoder.trunk(images))
        assert torch.equal(maps, feature_map(trunk_of(encoder), images))
        whole = with_regions(encoder, seed=1)
        boxes, owner = torch.tensor(BOXES), torch.tensor([0, 1, 1, 0, 1])
        rows = whole(images, boxes, owner, 1)
        assert rows.shape == (1 + len(BOXES), dim)
        torch.testing.assert_close(rows[:1], encoder(images)[:1])
        torch.testing.assert_close(rows[1:], whole.regions(maps, boxes, owner))
        assert torch.equal(whole(images), encoder(images))


def test_weights_keep_their_names_and_all_learn_from_boxes():
    encoder = trainable.build("mlcd_vit_tiny_patch8", 16, 32, seed=1)
    whole = with_regions(encoder)
    assert isinstance(whole, RegionEncoder) and whole.trunk is encoder.trunk
    own = dict(encoder.named_parameters())
    named = dict(whole.named_parameters())
    assert all(named[name] is weight for name, weight in own.items())
    assert {name.split(".")[0] for name in named.keys() - own.keys()} == {"regions"}
    boxes = torch.tensor([(0.0, 0.0, 0.5, 0.5), (0.5, 0.5, 1.0, 1.0)])
    rows = whole(torch.randn(2, 3, 32, 32), boxes, torch.tensor([1, 1]), 1)
    rows[1:].square().sum().backward()
    for name, weight in named.items():
        learned = weight.grad is not None and bool(weight.grad.abs().max() > 0)
        assert learned == (name != "projection.weight"), name


def test_a_model_without_a_known_map_is_refused():
    encoder = trainable.build("test_vit", 16, 32)
    encoder.trunk = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 64))
    with pytest.raises(UserError, match=r"train.regions: test_vit has no map .*set it to null"):
        with_regions(encoder)


def test_files_are_read_back_and_damage_is_told(tmp_path):
    encoder = trainable.build("test_vit", 16, 32)
    trainable.save(encoder, tmp_path, {})
    assert region_layer.load(tmp_path) is None
    layer = RegionLayer(64, 16, seed=4).eval()
    about = region_layer.save(layer, tmp_path)
    trainable.save(encoder, tmp_path, {"regions": about})
    assert read_json(tmp_path / "encoder.json")["regions"]["file"] == "regions.safetensors"
    maps, boxes, owner = torch.randn(2, 64, 4, 4), torch.tensor(BOXES), torch.tensor([0] * 5)
    again = region_layer.load(tmp_path)
    assert torch.equal(again(maps, boxes, owner), layer(maps, boxes, owner))
    path = tmp_path / "regions.safetensors"
    weights = load_file(path)
    weights["query.bias"] += 1
    save_file(weights, path)
    with pytest.raises(UserError, match=r"regions.safetensors: not the region layer that is desc"):
        region_layer.load(tmp_path)
    # No layer of such a size is built only to find that the weights are others.
    about = {**region_layer.save(layer, tmp_path), "width": 10**12}
    trainable.save(encoder, tmp_path, {"regions": about})
    with pytest.raises(UserError, match=r"is no region layer \(its projection has the shape"):
        region_layer.load(tmp_path)
    trainable.save(encoder, tmp_path, {"regions": region_layer.save(layer, tmp_path)})
    path.unlink()
    with pytest.raises(UserError, match=r"regions.safetensors: no such file; rerun train"):
        region_layer.load(tmp_path)
    trainable.save(encoder, tmp_path, {"regions": {**about, "width": "64"}})
    with pytest.raises(UserError, match=r"encoder.json: width of the region layer is missing or"):
        region_layer.load(tmp_path)
