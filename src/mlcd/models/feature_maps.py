"""What an encoder says at each place of an image: patch tokens, or the last map of a ResNet.

Class and register tokens are no places, and are dropped. Tokens are those after the trunk's last
norm, before any pooling or projection.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor, nn

import mlcd.utils.compat  # noqa: F401  (before open_clip)
from mlcd.models.trainable import Encoder
from mlcd.models.vit import MLCDViT
from mlcd.utils.errors import UserError


def trunk_of(network: nn.Module) -> nn.Module:
    """Return what has the map: of an :class:`Encoder` its trunk, of a TimmModel timm's."""
    trunk: Any = network.trunk if isinstance(network, Encoder) else network
    if hasattr(trunk, "trunk") and hasattr(trunk, "head"):
        trunk = trunk.trunk
    found: nn.Module = trunk
    return found


def feature_map(trunk: Any, images: Tensor) -> Tensor:
    """Return [B, C, h, w] of normalized images [B, 3, H, W].

    `trunk`: of :func:`trunk_of`; ours, timm's, open_clip's and the packaged EfficientNet. Raises
    :class:`UserError` for a network whose map is not known.
    """
    if isinstance(trunk, MLCDViT):
        tokens = trunk.norm_out(trunk.tokens(images))[:, 1:]
        patch = trunk.size.patch
        return _folded(tokens, images.shape[2] // patch, images.shape[3] // patch)
    if hasattr(trunk, "extract_features"):  # the packaged EfficientNet
        features: Tensor = trunk.extract_features(images)
        return features
    if hasattr(trunk, "forward_features"):  # timm
        return _of_timm(trunk, images)
    if hasattr(trunk, "forward_intermediates"):  # open_clip's own towers
        found = trunk.forward_intermediates(
            images,
            indices=1,
            normalize_intermediates=True,
            intermediates_only=True,
            output_fmt="NCHW",
        )
        last: Tensor = found["image_intermediates"][-1]
        return last
    raise UserError(
        f"evaluate.datasets: {type(trunk).__name__} gives no map of features that is known here; "
        "take the tasks segmentation, regions, pointing and token_spread out"
    )


def pooled_and_map(trunk: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return what the trunk of an :class:`Encoder` gives, [B, w], and its map, in one pass.

    The first equals ``trunk(images)``, the second :func:`feature_map`. Raises :class:`UserError`
    for a network of which both are not known.
    """
    if isinstance(trunk, MLCDViT):
        tokens = trunk.norm_out(trunk.tokens(images))
        patch = trunk.size.patch
        folded = _folded(tokens[:, 1:], images.shape[2] // patch, images.shape[3] // patch)
        return tokens[:, 0], folded
    inner: Any = trunk_of(trunk)
    if hasattr(inner, "forward_features") and hasattr(inner, "forward_head"):  # timm
        features = inner.forward_features(images)
        pooled: Tensor = inner.forward_head(features)
        # open_clip's TimmModel ends in a projection of its own.
        return pooled if inner is trunk else trunk.head(pooled), _timm_map(inner, features, images)
    if not hasattr(inner, "forward_features") and hasattr(inner, "forward_intermediates"):
        found = inner.forward_intermediates(images, indices=1, normalize_intermediates=True)
        return found["image_features"], found["image_intermediates"][-1]
    raise UserError(
        f"train.regions: {type(trunk).__name__} gives no map of features that is known here; set "
        "it to null"
    )


def _of_timm(trunk: Any, images: Tensor) -> Tensor:
    return _timm_map(trunk, trunk.forward_features(images), images)


def _timm_map(trunk: Any, features: Tensor, images: Tensor) -> Tensor:
    """Return a map of what timm's `forward_features` gives of `images`."""
    if features.ndim == 4:
        channels_last = str(getattr(trunk, "output_fmt", "NCHW")).endswith("NHWC")
        channels_first: Tensor = features.permute(0, 3, 1, 2) if channels_last else features
        return channels_first
    tokens = features[:, int(getattr(trunk, "num_prefix_tokens", 0)) :]
    sizes = getattr(getattr(trunk, "patch_embed", None), "dynamic_feat_size", None)
    side = math.isqrt(tokens.shape[1])
    rows, columns = sizes(images.shape[-2:]) if sizes else (side, side)
    return _folded(tokens, rows, columns)


def _folded(tokens: Tensor, rows: int, columns: int) -> Tensor:
    """Return tokens [B, rows · columns, C], row by row, as a map [B, C, rows, columns]."""
    if tokens.shape[1] != rows * columns:
        raise UserError(
            f"evaluate.datasets: an encoder of {tokens.shape[1]} tokens for {rows} × {columns} "
            "places has no map; take its dense tasks out"
        )
    return tokens.transpose(1, 2).reshape(len(tokens), tokens.shape[2], rows, columns)
