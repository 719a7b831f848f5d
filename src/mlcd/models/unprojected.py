"""Features of a tower before its projection into the embedding space, which the probe is fitted on.

CLIP's penultimate layer (arXiv 2103.00020, A.3). A module apart from the encoders, whose code
decides embeddings and trained weights: a change here must make none of these stale.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from mlcd.models import slices
from mlcd.models.frozen.base import FrozenEncoder
from mlcd.models.frozen.openclip import OpenClip
from mlcd.models.trainable import Encoder

#: Embedding [B, d] of images, and features [B, w] before the projection, if there is one.
Parts = Callable[[Tensor], tuple[Tensor, Tensor | None]]


def of_encoder(encoder: Encoder, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Return embeddings [B, d] of normalized images, and features [B, w] before the projection.

    None for these where the encoder has no projection.
    """
    trunk, projection = encoder.trunk, encoder.projection
    if not isinstance(projection, nn.Identity):

        @torch.inference_mode()
        def compute(images: Tensor) -> tuple[Tensor, Tensor | None]:
            pooled = trunk(images)
            return projection(pooled), pooled

        found = slices.forward(compute, images)
    else:
        with _taken_apart(trunk) as tower:
            found = slices.forward(torch.inference_mode()(tower), images)
    embedding, pooled = found
    assert embedding is not None
    return embedding, pooled


def of_frozen(encoder: FrozenEncoder, batch: Tensor) -> tuple[Tensor, Tensor]:
    """Return unit features float32 [B, d] of uint8 pixels, as `encode_images` does, and [B, w].

    The latter, float32, are those before the projection, or else before the normalization, so that
    no encoder's are of unit length. Both on the CPU. Raises :class:`mlcd.utils.errors.UserError` as
    `encode_images`.
    """
    visual = encoder._model.visual if isinstance(encoder, OpenClip) else None
    with contextlib.ExitStack() as stack:
        # CoCa's embedding is not its tower's output alone.
        if visual is None or getattr(visual, "output_tokens", False):
            tower = _whole(encoder._image_features)
        else:
            tower = stack.enter_context(_taken_apart(visual))

        @torch.inference_mode()
        def compute(images: Tensor) -> tuple[Tensor, Tensor]:
            with encoder._autocast():
                features, pooled = tower(images)
            unit = torch.nn.functional.normalize(features.float(), dim=1)
            return unit, (features if pooled is None else pooled).float()

        with torch.inference_mode():
            unit, kept = slices.forward(compute, encoder.normalized(batch))
    assert unit is not None and kept is not None
    encoder.require_finite(unit)
    return unit.cpu(), kept.cpu()


def _whole(compute: Callable[[Tensor], Tensor]) -> Parts:
    """Return what computes an embedding, and nothing before it."""
    return lambda images: (compute(images), None)


@contextlib.contextmanager
def _taken_apart(tower: Any) -> Iterator[Parts]:
    """Yield what computes an open_clip tower's embedding, and what is before its projection.

    None where it has none of its own: the attention pool of CLIP's ResNets is none, and their
    probe is on its output. Threads may use it side by side, until the block ends.
    """
    if isinstance(getattr(tower, "proj", None), nn.Parameter):  # open_clip's VisionTransformer
        projection, tower.proj = tower.proj, None

        def of_vit(images: Tensor) -> tuple[Tensor, Tensor | None]:
            pooled = tower(images)
            return pooled @ projection, pooled

        try:
            yield of_vit
        finally:
            tower.proj = projection
        return
    head = dict(tower.head.named_children()) if hasattr(tower, "trunk") else {}
    if "proj" in head or "mlp" in head:  # open_clip's TimmModel, whose head ends in it

        def of_timm(images: Tensor) -> tuple[Tensor, Tensor | None]:
            pooled = tower.head[:-1](tower.trunk(images))
            return tower.head[-1](pooled), pooled

        yield of_timm
        return
    yield _whole(tower)
