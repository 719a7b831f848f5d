"""An encoder at another image size, held to what timm and open_clip do themselves."""

from __future__ import annotations

import copy
import types

import pytest
import torch

from mlcd.models import trainable
from mlcd.models.resize_weights import _prefix_tokens, check, fitted
from mlcd.stages.train.final import running_statistics, set_weights
from mlcd.utils.errors import UserError


def images(side):
    return torch.randn(3, 3, side, side, generator=torch.Generator().manual_seed(5))


def moved(model, first, second):
    """Return an encoder at `first` pixels and one at `second` that was given its weights."""
    small = trainable.build(model, 8, first, seed=1)
    small(images(first))  # moves running statistics
    large = trainable.build(model, 8, second, seed=2)
    weights = {f"weight/{name}": weight for name, weight in small.named_parameters()}
    set_weights(large, weights, running_statistics(small))
    return small.eval(), large.eval()


@pytest.mark.parametrize("sizes", [(32, 48), (64, 160), (96, 32)])
# With a class token; with a register and attention pooling.
@pytest.mark.parametrize("model", ["test_vit", "test_vit3"])
def test_timm_transformers_are_resampled_as_timm_does(model, sizes):
    small, large = moved(model, *sizes)
    theirs = copy.deepcopy(small)
    theirs.trunk.set_input_size(img_size=sizes[1])
    assert torch.equal(large.trunk.pos_embed, theirs.trunk.pos_embed)
    with torch.no_grad():
        assert torch.equal(large(images(sizes[1])), theirs(images(sizes[1])))


@pytest.mark.parametrize("sizes", [(32, 48), (64, 24)])
def test_open_clip_towers_are_resampled_as_open_clip_does(sizes):
    import open_clip

    small, large = moved("open_clip:tiny-for-tests", *sizes)
    state = {"visual.positional_embedding": small.trunk.positional_embedding.detach()}
    open_clip.model.resize_pos_embed(state, types.SimpleNamespace(visual=large.trunk))
    expected = state["visual.positional_embedding"]
    assert expected.shape != small.trunk.positional_embedding.shape
    torch.testing.assert_close(large.trunk.positional_embedding.data, expected)
    with torch.no_grad():
        assert large(images(sizes[1])).shape == (3, 8)


# The second has positions, but no table of them.
@pytest.mark.parametrize("model", ["test_resnet", "mlcd_vit_tiny_patch8"])
def test_what_knows_no_image_size_keeps_every_tensor(model):
    small, large = moved(model, 32, 48)
    for name, tensor in small.state_dict().items():
        assert torch.equal(large.state_dict()[name], tensor), name
    with torch.no_grad():
        assert torch.equal(large(images(48)), small(images(48)))


def test_grids_without_tokens_and_second_moments():
    grid = torch.rand(1, 4, 4, 6)
    rows = fitted("a.pos_embed", grid.reshape(1, 16, 6), torch.Size([1, 36, 6]))
    assert torch.equal(fitted("a.pos_embed", grid, torch.Size([1, 6, 6, 6])).view(1, 36, 6), rows)
    spike = torch.zeros(1, 17, 6)
    spike[0, 7] = 1e-9
    for tokens in (50, 10):
        shape = torch.Size([1, tokens, 6])
        assert float(fitted("a.pos_embed", spike, shape).min()) < 0
        assert float(fitted("a.pos_embed", spike, shape, "bilinear").min()) >= 0


def test_prefix_tokens_are_found_for_any_two_grids():
    for count in range(8):
        for first in range(1, 40):
            for second in range(1, 40):
                if first != second:
                    assert _prefix_tokens(first**2 + count, second**2 + count) == count


@pytest.mark.parametrize(
    ("model", "sizes", "message"),
    [
        ("mixer_s32_224", (64, 96), r"high_res_image_size: trunk\.blocks\.0\.mlp_tokens"),
        ("test_vit", (32, 3), "test_vit cannot be built .* change train.high_res_image_size"),
        ("test_vit", (3, 32), "test_vit cannot be built .* change train.image_size"),
    ],
)
def test_what_cannot_resume_is_refused_before_training(model, sizes, message):
    with pytest.raises(UserError, match=message) as caught:
        check(model, 8, *sizes)
    assert "\n" not in str(caught.value)
