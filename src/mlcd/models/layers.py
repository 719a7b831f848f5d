"""The layers of an encoder in order, for learning rates per layer and for layers that are frozen.

timm's models say themselves which weights belong together (`group_matcher`); open_clip's towers
and ours are numbered here: stem, blocks, what comes after.
"""

from __future__ import annotations

import re
from typing import Any

from torch import nn

from mlcd.models.trainable import Encoder
from mlcd.models.vit import MLCDViT
from mlcd.utils.errors import UserError

#: Weights of the blocks, with their number, and those before them.
_VIT = (
    re.compile(r"(?:transformer\.resblocks|blocks)\.(\d+)\."),
    re.compile(
        r"class_embedding|class_angle|positional_embedding|patches\.|norm_in\.|conv1\.|ln_pre\."
    ),
)
_EFFICIENTNET = (re.compile(r"model\._blocks\.(\d+)\."), re.compile(r"model\._(?:conv_stem|bn0)\."))
_RESNET = (re.compile(r"layer(\d+)\.(\d+)\."), re.compile(r"(?:conv|bn)\d\."))


def numbers(encoder: Encoder, key: str = "train.layer_decay") -> dict[str, int]:
    """Return the number of its layer for each weight's name: 0 is the stem.

    The projection belongs to the last layer. Raises :class:`UserError`, with `key`, if the model
    does not say its order.
    """
    trunk: Any = encoder.trunk
    prefix = "trunk."
    if not hasattr(trunk, "group_matcher") and hasattr(trunk, "trunk"):  # open_clip's TimmModel
        trunk, prefix = trunk.trunk, "trunk.trunk."
    names = [name for name, _ in trunk.named_parameters()]
    if hasattr(trunk, "group_matcher"):
        from timm.models import group_parameters

        found = group_parameters(trunk, trunk.group_matcher(coarse=False), reverse=True)
    elif isinstance(trunk, MLCDViT) or hasattr(trunk, "transformer"):
        found = _numbered(names, *_VIT)
    elif names[0].startswith("model._"):  # the package's EfficientNet
        found = _numbered(names, *_EFFICIENTNET)
    elif hasattr(trunk, "layer1"):
        found = _numbered(names, *_RESNET)
    else:
        raise UserError(f"{key}: {encoder.model} does not say the order of its layers; unset it")
    last = max(found.values())
    return {
        name: found.get(name.removeprefix(prefix), last) if name.startswith(prefix) else last
        for name, _ in encoder.named_parameters()
    }


def lr_scales(
    encoder: Encoder, decay: float | None, key: str = "train.layer_decay"
) -> dict[str, float] | None:
    """Return the factor on the learning rate of each weight, by name; None for one rate.

    Layer i of 0 … n has decay to the power of n − i (BEiT, arXiv 2106.08254). Raises
    :class:`UserError`, with the `key` of the config, if the model does not say its order.
    """
    if decay is None:
        return None
    found = numbers(encoder, key)
    last = max(found.values())
    return {name: decay ** (last - number) for name, number in found.items()}


def freeze(encoder: Encoder, count: int) -> None:
    """Leave the first `count` layers as they are: no gradients, no new statistics of batch norm.

    Raises :class:`UserError` if nothing would be left to train.
    """
    if not count:
        return
    found = numbers(encoder, "train.freeze_layers")
    last = max(found.values())
    if count > last:
        raise UserError(
            f"train.freeze_layers: {encoder.model} has {last + 1} layers, and the last is trained; "
            f"set it to {last} or less"
        )
    for name, weight in encoder.named_parameters():
        weight.requires_grad_(found[name] >= count)
    encoder.frozen = tuple(_still(encoder))
    encoder.train(encoder.training)


def _still(encoder: nn.Module) -> list[nn.Module]:
    """Return the modules that have weights, all of them frozen, and no such module around."""
    found: list[nn.Module] = []
    for child in encoder.children():
        weights = list(child.parameters())
        if weights and not any(weight.requires_grad for weight in weights):
            found.append(child)
        elif weights:
            found += _still(child)
    return found


def _numbered(names: list[str], block: re.Pattern[str], stem: re.Pattern[str]) -> dict[str, int]:
    """Number the layers of a trunk: 0 for what is of the stem, blocks in their order, the rest."""
    places = {
        name: tuple(map(int, found.groups())) for name in names if (found := block.match(name))
    }
    order = {place: number for number, place in enumerate(sorted(set(places.values())), start=1)}
    end = len(order) + 1
    return {
        name: order[places[name]] if name in places else 0 if stem.match(name) else end
        for name in names
    }
