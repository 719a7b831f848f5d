"""Encoders that are trained further on a data set's classes: pooled features and a linear layer.

The features are those before the projection into the embedding space, which the linear probe sees
too (:mod:`mlcd.models.unprojected`); the projection goes. The new layer stands in its place, so
that learning rates per layer (:mod:`mlcd.models.layers`) count it to the last one.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor, nn

from mlcd.config.encoders import OPEN_CLIP
from mlcd.models import frozen, trainable
from mlcd.models.frozen.base import FrozenEncoder
from mlcd.models.frozen.efficientnet import EfficientNetLite0, unfolded
from mlcd.models.frozen.openclip import OpenClip
from mlcd.models.trainable import Encoder
from mlcd.utils.errors import UserError

#: Standard deviation of the new layer's weights, as MAE's (arXiv 2111.06377, its released code).
_STD = 2e-5


class PooledEfficientNet(nn.Module):
    """Images [B, 3, H, W] to the mean [B, 1280] over positions of the last convolution."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        # A layer that is not used would have no gradient.
        model._fc = nn.Identity()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        # A module's attributes are tensors or modules to the type checker.
        network: Any = self.model
        features: Tensor = network.extract_features(images).mean((2, 3))
        return features


def rebuilt(
    folder: str | os.PathLike[str], drop_path: float, seed: int, *, trained: bool
) -> Encoder:
    """Return the encoder of results/train with stochastic depth, at its weights or random ones.

    Raises :class:`UserError` as :func:`trainable.load` and :func:`trainable.build`.
    """
    about = trainable.read_description(folder)
    encoder = trainable.build(
        about["model"], about["embedding_dim"], about["image_size"], drop_path, seed
    )
    if trained:
        kept = trainable.load(folder)
        encoder.load_state_dict(kept.state_dict())
        encoder.mean, encoder.std = kept.mean, kept.std
    return encoder


def of_frozen(encoder: FrozenEncoder) -> Encoder:
    """Return a frozen encoder as one that is trained, on the CPU, in float32.

    Raises :class:`UserError` if its images are not square.
    """
    height, width = encoder.pixels.size
    if height != width:
        raise UserError(
            f"evaluate.finetune_models: {encoder.name} sees images of {width} × {height} pixels, "
            "and crops are square; take frozen out"
        )
    trunk: nn.Module
    if isinstance(encoder, EfficientNetLite0):
        # As it was trained: with batch norm.
        trunk, name = PooledEfficientNet(unfolded(height)), encoder.name
    elif isinstance(encoder, OpenClip):
        trunk, name = encoder.network, f"{OPEN_CLIP}{encoder.name}"
    else:
        raise AssertionError("frozen encoders of the config are of these two kinds")
    return Encoder(
        trunk.float().cpu().requires_grad_(True),
        nn.Identity(),
        model=name,
        embedding_dim=encoder.dim,
        image_size=height,
        mean=encoder.pixels.mean,
        std=encoder.pixels.std,
    )


def load_frozen(model: str, pretrained: str | None, image_size: int | None) -> FrozenEncoder:
    """Return the section embed's encoder on the CPU, in float32. Raises :class:`UserError`."""
    return frozen.load(model, pretrained, image_size, "cpu", "fp32")


@torch.no_grad()
def with_classes(encoder: Encoder, classes: int, seed: int) -> Encoder:
    """Put a linear layer from pooled features to `classes` in the place of the projection.

    `encoder` is changed, and returned: images to logits [B, classes].
    """
    if not isinstance(encoder.projection, nn.Identity):
        encoder.projection = nn.Identity()
    else:
        _without_projection(encoder.trunk)
    encoder.eval()
    side = encoder.image_size
    width = encoder(torch.zeros(1, 3, side, side)).shape[1]
    head = nn.Linear(width, classes)
    draw = torch.Generator().manual_seed(seed)
    head.weight.copy_(_STD * torch.randn(classes, width, generator=draw))
    nn.init.zeros_(head.bias)
    encoder.projection = head
    encoder.embedding_dim = classes
    return encoder


def _without_projection(tower: Any) -> None:
    """Take an open_clip tower's own projection out, if it has one."""
    if isinstance(getattr(tower, "proj", None), nn.Parameter):  # VisionTransformer
        tower.proj = None
        return
    head = dict(tower.head.named_children()) if hasattr(tower, "trunk") else {}
    if "proj" in head or "mlp" in head:  # TimmModel, whose head ends in it
        tower.head = tower.head[:-1]
