"""The contrastive loss with products of bfloat16, held to the exact one."""

from __future__ import annotations

import torch

from mlcd.classifier.collectives import Exchange
from mlcd.stages.text.contrastive import contrastive_loss

PAIRS, DIM = 64, 32


def result(halves: bool) -> tuple[torch.Tensor, ...]:
    generator = torch.Generator().manual_seed(0)
    image = torch.randn(PAIRS, DIM, generator=generator)
    text = (image + torch.randn(PAIRS, DIM, generator=generator)).requires_grad_()
    scale = torch.tensor([30.0], requires_grad=True)
    loss, found = contrastive_loss(image, text, scale, Exchange(), halves=halves)
    return loss.detach(), found, *torch.autograd.grad(loss, (text, scale))


def test_products_in_halves_are_near() -> None:
    (loss, found, text, scale), exact = result(True), result(False)
    # Cosines within 2^-8, each logit within 30 times that; most cancels in the mean.
    assert abs(loss - exact[0]) < 0.02 * exact[0] and loss != exact[0]
    assert abs(found - exact[1]) <= 2 / PAIRS
    assert torch.linalg.vector_norm(text - exact[2]) < 0.02 * torch.linalg.vector_norm(exact[2])
    torch.testing.assert_close(scale, exact[3], rtol=0.02, atol=1e-4)
