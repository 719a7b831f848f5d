"""The contrastive loss over all ranks' pairs (CLIP, arXiv 2103.00020, figure 3; LiT's case)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from mlcd.classifier.exchange import Exchange


def contrastive_loss(
    image: Tensor, text: Tensor, scale: Tensor, exchange: Exchange
) -> tuple[Tensor, Tensor]:
    """Return this rank's part of the loss, and the share of its texts that find their picture.

    `image` float [b, d] needs no gradient (the encoder is frozen), `text` float [b, d] does; both
    are normalised here. Row i of each belongs together. The mean of the parts over ranks is the
    loss of the global batch, [image → text + text → image] / 2, at any number of ranks.
    """
    image, text = normalize(image.float()), normalize(text.float())
    images = exchange.gather(image)
    texts: Tensor = _Gather.apply(text, exchange)  # type: ignore[assignment]
    target = exchange.rank * len(text) + torch.arange(len(text), device=text.device)
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
