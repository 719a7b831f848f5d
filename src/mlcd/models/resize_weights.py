"""A trained encoder at another image size: the same weights, its position embedding interpolated.

Convolutional networks keep every weight. Vision transformers hold one vector for each patch of the
grid, which is resampled as timm and open_clip do when they load weights of another size: bicubic,
antialiased, prefix tokens (class, registers) as they are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mlcd.models import trainable
from mlcd.utils.errors import UserError

#: How timm names a position embedding, and how open_clip does.
_NAMES = ("pos_embed", "positional_embedding")
#: More class and register tokens than any model has; below it their number is never ambiguous.
_MOST_PREFIX_TOKENS = 7


def fitted(name: str, value: Tensor, shape: torch.Size, interpolation: str = "bicubic") -> Tensor:
    """Return the tensor `value` of an encoder as one of `shape`: as it is, or resampled.

    `name` is its name in the encoder. A position embedding is [tokens, width], [1, tokens, width]
    or [1, side, side, width]; images are square. Use the interpolation ``bilinear`` for what must
    not become negative. Raises :class:`UserError` if another tensor than a position embedding
    depends on the image size.
    """
    from timm.layers.pos_embed import resample_abs_pos_embed

    if value.shape == shape:
        return value
    if name.rsplit(".", 1)[-1] not in _NAMES or value.shape[-1] != shape[-1]:
        raise UserError(
            f"train.high_res_image_size: {name} of this train.model has the shape "
            f"{tuple(value.shape)} at one size and {tuple(shape)} at the other, and is no position "
            "embedding that could be interpolated; set it to null, or choose another model"
        )
    rows = value.reshape(1, -1, value.shape[-1])
    tokens = math.prod(shape[:-1])
    prefix = _prefix_tokens(rows.shape[1], tokens)
    side = math.isqrt(tokens - prefix)
    resampled: Tensor = resample_abs_pos_embed(
        rows, [side, side], num_prefix_tokens=prefix, interpolation=interpolation
    )
    return resampled.reshape(shape)


def check(model: str, embedding_dim: int, first: int, second: int) -> None:
    """Raise :class:`UserError` if `model` cannot resume from images of `first` to `second` pixels.

    Builds it at both sizes.
    """
    small = trainable.build(model, embedding_dim, first)
    try:
        large = trainable.build(model, embedding_dim, second)
    except UserError as error:
        raise UserError(
            str(error).replace("train.image_size", "train.high_res_image_size")
        ) from None
    state = large.state_dict()
    for name, value in small.state_dict().items():
        fitted(name, value, state[name].shape)


def _prefix_tokens(first: int, second: int) -> int:
    """Return how many tokens are no patches, given the tokens at two image sizes.

    Without them both counts are squares. For up to 7 prefix tokens no smaller number makes two
    different squares of both, so the least is the right one.
    """
    for count in range(min(_MOST_PREFIX_TOKENS + 1, first, second)):
        if all(math.isqrt(n - count) ** 2 == n - count for n in (first, second)):
            return count
    raise UserError(
        "train.high_res_image_size: the position embedding of train.model is no square grid; "
        "set it to null"
    )
