"""Features of a tower before its projection into the embedding space, which the probe is fitted on.

CLIP's penultimate layer (arXiv 2103.00020, A.3). A module apart from the encoders, whose code
decides embeddings and trained weights: a change here must make none of these stale.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mlcd.encoders.frozen.base import FrozenEncoder
from mlcd.encoders.frozen.openclip import OpenClip
from mlcd.encoders.trainable import Encoder


def of_encoder(encoder: Encoder, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return embeddings [B, d] of normalised pictures, and features [B, w] before the projection.

    None for these where the encoder has no projection.
    """
    if not isinstance(encoder.projection, nn.Identity):
        pooled = encoder.trunk(images)
        return encoder.projection(pooled), pooled
    return _of_tower(encoder.trunk, images)


@torch.inference_mode()
def of_frozen(encoder: FrozenEncoder, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Return unit features float32 [B, d] of uint8 pixels, as `encode_images` does, and [B, w].

    The latter, float32, are those before the projection, or else before the normalisation, so that
    no encoder's are of unit length. Both on the CPU. Raises :class:`mlcd.errors.UserError` as
    `encode_images`.
    """
    images = batch.to(encoder.device, non_blocking=True).float() * encoder._scale + encoder._shift
    pooled = None
    with encoder._autocast():
        visual = encoder._model.visual if isinstance(encoder, OpenClip) else None
        # CoCa's embedding is not its tower's output alone.
        if visual is None or getattr(visual, "output_tokens", False):
            features = encoder._image_features(images)
        else:
            features, pooled = _of_tower(visual, images)
    kept = features if pooled is None else pooled
    return encoder._unit(features), kept.float().cpu()


def _of_tower(tower: nn.Module, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Take an open_clip tower's projection apart; None where it has none of its own.

    The attention pool of CLIP's ResNets is none: their probe is on its output.
    """
    if isinstance(getattr(tower, "proj", None), nn.Parameter):  # open_clip's VisionTransformer
        projection, tower.proj = tower.proj, None
        try:
            pooled = tower(images)
        finally:
            tower.proj = projection
        return pooled @ projection, pooled
    head = dict(tower.head.named_children()) if hasattr(tower, "trunk") else {}
    if "proj" in head or "mlp" in head:  # open_clip's TimmModel, whose head ends in it
        pooled = tower.head[:-1](tower.trunk(images))
        return tower.head[-1](pooled), pooled
    return tower(images), None
