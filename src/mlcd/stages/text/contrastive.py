"""The contrastive loss over all ranks' pairs (CLIP, arXiv 2103.00020, figure 3; LiT's case)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from mlcd.classifier.collectives import Exchange
from mlcd.losses.sharded_loss import product


def contrastive_loss(
    image: Tensor, text: Tensor, scale: Tensor, exchange: Exchange, *, halves: bool = False
) -> tuple[Tensor, Tensor]:
    """Return this rank's part of the loss, and the share of its texts that find their image.

    `image` float [b, d] needs no gradient (the encoder is frozen), `text` float [b, d] does; both
    are normalized here. Row i of each belongs together. The mean of the parts over ranks is the
    loss of the global batch, [image → text + text → image] / 2, at any number of ranks. halves: the
    products are of bfloat16, which tensor cores add up in float32; cosines are then within 2^-8.
    """
    image, text = normalize(image.float()), normalize(text.float())
    images = exchange.gather(image)
    # torch leaves Function.apply untyped.
    texts: Tensor = _Gather.apply(text, exchange)  # type: ignore[no-untyped-call]
    target = exchange.rank * len(text) + torch.arange(len(text), device=text.device)
    if halves:
        # torch leaves Function.apply untyped.
        of_text = scale * _Halves.apply(text, images)  # type: ignore[no-untyped-call]
        of_image = scale * _Halves.apply(image, texts)  # type: ignore[no-untyped-call]
    else:
        of_text = scale * text @ images.T
        of_image = scale * image @ texts.T
    loss = (cross_entropy(of_text, target) + cross_entropy(of_image, target)) / 2
    found = (of_text.detach().argmax(1) == target).float().mean()
    return loss, found


class _Gather(torch.autograd.Function):
    """Rows of all ranks; backward, each rank's rows get the sum of what all ranks made of them."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange = exchange
        return exchange.gather(part)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.exchange.scatter_sum(gradients[0].contiguous())(), None


class _Halves(torch.autograd.Function):
    """left [n, d] @ right [m, d]ᵀ, factors rounded to bfloat16, sums and result float32."""

    @staticmethod
    def forward(ctx: Any, left: Tensor, right: Tensor) -> Tensor:
        left, right = left.bfloat16(), right.bfloat16()
        ctx.save_for_backward(left, right)
        return _product(left, right.T)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None]:
        left, right = ctx.saved_tensors
        gradient = gradients[0].bfloat16()
        of_left = _product(gradient, right) if ctx.needs_input_grad[0] else None
        return of_left, _product(gradient.T, left) if ctx.needs_input_grad[1] else None


def _product(left: Tensor, right: Tensor) -> Tensor:
    return product(left, right, left.new_empty(len(left), right.shape[1], dtype=torch.float32))
