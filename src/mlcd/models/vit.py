"""MLCD's vision transformer: CLIP's blocks, and positions turned into rotations (2-D RoPE).

There is no table of positions: each patch turns pairs of its queries' and keys' channels by angles
that follow from its row and column, and the class token by learned angles. So weights fit every
image size. transformers' `MLCDVisionModel` computes the same; :mod:`mlcd.stages.export` maps the
weights. Sources: MLCD (arXiv 2407.17331), RoPE (arXiv 2104.09864), blocks and initial weights as
CLIP's (arXiv 2103.00020).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from mlcd.config.encoders import SIZES, Size, size_problem
from mlcd.utils.errors import UserError

#: Angles of the slowest pair are this many times smaller than those of the fastest, nearly.
THETA = 10000.0


class MLCDViT(nn.Module):
    """Images [B, 3, H, W] to features [B, width]: the class token after the last norm.

    H and W are multiples of the patch. Weights are drawn from torch's global generator.
    """

    def __init__(self, size: Size, drop_path: float = 0.0) -> None:
        super().__init__()
        self.size = size
        self.class_embedding = nn.Parameter(torch.randn(size.width) * size.width**-0.5)
        head = size.width // size.heads
        self.class_angle = nn.Parameter(torch.randn(head // 2) * (head // 2) ** -0.5)
        self.patches = nn.Conv2d(3, size.width, size.patch, size.patch, bias=False)
        nn.init.normal_(self.patches.weight, std=0.02)
        self.norm_in = nn.LayerNorm(size.width)
        rates = torch.linspace(0, drop_path, size.depth, device="cpu").tolist()
        self.blocks = nn.ModuleList(Block(size, rate) for rate in rates)
        self.norm_out = nn.LayerNorm(size.width)
        self._checkpointing = False

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass, or keep them."""
        self._checkpointing = enable

    def tokens(self, images: Tensor) -> Tensor:
        """Return the last block's tokens [B, 1 + patches, width], the class token first."""
        x: Tensor = self.patches(images)
        rows, columns = x.shape[-2:]
        x = x.flatten(2).transpose(1, 2)
        x = torch.cat([self.class_embedding.to(x.dtype).expand(len(x), 1, -1), x], dim=1)
        x = self.norm_in(x)
        of_patches = patch_angles(rows, columns, 2 * len(self.class_angle), x.device)
        angles = torch.cat([self.class_angle.float()[None], of_patches])
        for block in self.blocks:
            if self._checkpointing and self.training:
                x = checkpoint(block, x, angles, use_reentrant=False)
            else:
                x = block(x, angles)
        return x

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.norm_out(self.tokens(images)[:, 0])
        return features


class Block(nn.Module):
    """Attention and an MLP, each normed before and added to its input; tokens [B, T, width]."""

    def __init__(self, size: Size, drop_path: float) -> None:
        super().__init__()
        from timm.layers.drop import DropPath

        width = size.width
        self.heads = size.heads
        self.norm_1 = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_2 = nn.LayerNorm(width)
        self.fc_1 = nn.Linear(width, size.mlp)
        self.fc_2 = nn.Linear(size.mlp, width)
        self.drop = DropPath(drop_path) if drop_path else nn.Identity()
        # What is added to the stream is scaled down by the number of additions.
        added = (2 * size.depth * width) ** -0.5
        deviations = {self.qkv: width**-0.5, self.out: added,
                      self.fc_1: (2 * width) ** -0.5, self.fc_2: added}  # fmt: skip
        for layer, deviation in deviations.items():
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, angles: Tensor) -> Tensor:
        x = x + self.drop(self._attention(self.norm_1(x), angles))
        added: Tensor = self.drop(self.fc_2(functional.gelu(self.fc_1(self.norm_2(x)))))
        return x + added

    def _attention(self, x: Tensor, angles: Tensor) -> Tensor:
        batch, count, width = x.shape
        qkv = self.qkv(x).view(batch, count, 3, self.heads, width // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        turn = turned_lean if _is_lean(x) else turned
        y = functional.scaled_dot_product_attention(turn(q, angles), turn(k, angles), v)
        out: Tensor = self.out(y.transpose(1, 2).reshape(batch, count, width))
        return out


def patch_angles(rows: int, columns: int, head: int, device: torch.device) -> Tensor:
    """Return float32 [rows · columns, head / 2], radians, patches row by row.

    The first half are the row times falling frequencies, the second the column times the same.
    """
    frequency = THETA ** -(torch.arange(0, head // 2, 2, device=device).float() / (head // 2))
    y = torch.arange(rows, device=device).float()[:, None, None] * frequency
    x = torch.arange(columns, device=device).float()[None, :, None] * frequency
    y, x = y.expand(rows, columns, -1), x.expand(rows, columns, -1)
    return torch.cat([y, x], dim=-1).flatten(0, 1)


def turned(x: Tensor, angles: Tensor) -> Tensor:
    """Turn the channel pairs (i, i + head / 2) of x [B, heads, T, head] by angles [T, head / 2].

    Computed in float32: half precision would blur the angles of distant patches.
    """
    a, b = x.float().chunk(2, dim=-1)
    cos, sin = angles.cos(), angles.sin()
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1).to(x.dtype)


def turned_lean(x: Tensor, angles: Tensor) -> Tensor:
    """As :func:`turned`, in place of copies in float32: for GPUs without torch.compile.

    Angles stay float32; each product is rounded to the dtype of `x` once more. Of a gradient by
    angles only that of the first row, the class token's, which alone are learned.
    """
    # torch leaves Function.apply untyped.
    y: Tensor = _Turned.apply(x, angles)  # type: ignore[no-untyped-call]
    return y


@contextmanager
def lean() -> Iterator[None]:
    """Let a CPU, and shapes alone, take the way of GPUs meanwhile."""
    before = _LEAN.set(True)
    try:
        yield
    finally:
        _LEAN.reset(before)


_LEAN: ContextVar[bool] = ContextVar("lean", default=False)


def _is_lean(x: Tensor) -> bool:
    # A compiler fuses the plain form, which then makes no copies either.
    return (x.is_cuda and not torch.compiler.is_compiling()) or _LEAN.get()


class _Turned(torch.autograd.Function):
    """The backward pass turns the gradient back; only `x`, which attention keeps too, is saved."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, angles: Tensor) -> Tensor:
        cos, sin = angles.cos(), angles.sin()
        ctx.save_for_backward(x, cos, sin)
        return _rotate(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor | None]:
        x, cos, sin = ctx.saved_tensors
        (gradient,) = gradients
        by_angle = None
        if ctx.needs_input_grad[1]:
            a, b = x[..., :1, :].float().chunk(2, dim=-1)
            first, second = gradient[..., :1, :].float().chunk(2, dim=-1)
            rate = second * (a * cos[:1] - b * sin[:1]) - first * (a * sin[:1] + b * cos[:1])
            by_angle = torch.zeros_like(cos)
            by_angle[0] = rate.sum((0, 1, 2))
        return _rotate(gradient, cos, -sin), by_angle


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the pairs of x [B, heads, T, head]; kernels read and write its dtype alone."""
    with torch.autocast("cuda" if x.is_cuda else "cpu", enabled=False):
        y = torch.empty_like(x)
        a, b = x.chunk(2, dim=-1)
        first, second = y.chunk(2, dim=-1)
        torch.mul(a, cos, out=first)
        first.addcmul_(b, sin, value=-1)
        torch.mul(b, cos, out=second)
        second.addcmul_(a, sin)
    return y


def build(model: str, image_size: int, drop_path: float) -> MLCDViT:
    """Build a model of `SIZES`. Raises :class:`UserError` if its patches do not fill the image."""
    if problem := size_problem(model, image_size):
        raise UserError(f"train.image_size: {problem}")
    return MLCDViT(SIZES[model], drop_path)
