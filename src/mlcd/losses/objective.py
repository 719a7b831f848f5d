"""The loss as formulas over similarities; everything else computes their inputs faster."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

KINDS = ("mlcd", "mlc", "single")
MARGIN_TYPES = ("cosface", "arcface", "none")

# A vector shorter than this has no direction: its unit vector and its gradient are 0.
SHORTEST = 1e-12
# Sine of the angle under which arcface continues as a straight line in the cosine: its slope
# sin(θ + m) / sin θ grows without bound toward θ = 0.
LEAST_SINE = 1e-3


def unit_rows(vector: Tensor) -> Tensor:
    """Return `vector` [..., d] divided by its length; differentiable; a zero vector stays zero."""
    length = torch.linalg.vector_norm(vector, dim=-1, keepdim=True)
    return vector / torch.where(length > SHORTEST, length, math.inf)


def working_precision(vector: Tensor) -> Tensor:
    """Return `vector` as float32, or as it is if it is float64."""
    return vector if vector.dtype == torch.float64 else vector.float()


@dataclass(frozen=True)
class Objective:
    """A kind of loss with its scale and its margin.

    kind: `mlcd`, `mlc` or `single`; scale: factor on cosines; margin: taken from the positives
    only, as a cosine (`cosface`) or an angle in radians within [0, π] (`arcface`); margin_type:
    `cosface`, `arcface` or `none`. Raises ValueError for other values.
    """

    kind: str
    scale: float
    margin: float
    margin_type: str

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind {self.kind!r}: expected one of {', '.join(KINDS)}")
        if self.margin_type not in MARGIN_TYPES:
            names = ", ".join(MARGIN_TYPES)
            raise ValueError(f"margin_type {self.margin_type!r}: expected one of {names}")
        if not (self.scale > 0 and math.isfinite(self.scale)):
            raise ValueError(f"scale {self.scale}: expected a positive number")
        if not 0 <= self.margin < math.inf:
            raise ValueError(f"margin {self.margin}: expected a number that is not negative")
        if self.margin_type == "arcface" and self.margin > math.pi:
            raise ValueError(f"margin {self.margin}: an angle in radians, expected at most π")

    def positive_logit(self, cosine: Tensor) -> Tensor:
        """Return scale · margin(cosine) of positives, differentiable with finite gradients.

        arcface is cos(θ + m) up to θ + m = π, where it has fallen to −1, and continues as
        cos θ − (1 − cos m): continuous and falling, where cos(θ + m) would rise again and push
        embedding and center apart. Where sin θ < 1e-3 near θ = 0 it is the tangent at that angle.
        """
        if self.margin_type == "cosface":
            return self.scale * (cosine - self.margin)
        if self.margin_type == "none" or self.margin == 0:
            return self.scale * cosine
        highest = math.sqrt(1 - LEAST_SINE**2)
        cos_m, sin_m = math.cos(self.margin), math.sin(self.margin)
        inner = cosine.clamp(-highest, highest)
        tangent = cos_m + sin_m * highest / LEAST_SINE
        beyond = (cosine - highest).clamp(min=0)
        bent = inner * cos_m - (1 - inner * inner).sqrt() * sin_m + tangent * beyond
        straight = cosine - (1 - cos_m)
        return self.scale * torch.where(cosine < -min(cos_m, highest), straight, bent)

    def terms(self, positive: Tensor, negative: Tensor) -> tuple[Tensor, Tensor]:
        """Return log(1 + Σ_P exp(−s)) and log(1 + Σ_N' exp(s)) from the logarithms of the sums.

        positive: log Σ_P exp(−s_i) [n]; negative: log Σ_N' exp(s_j) [n]; −inf for an empty sum.
        """
        zero = positive.new_zeros(())
        return torch.logaddexp(positive, zero), torch.logaddexp(negative, zero)

    def loss(self, positive: Tensor, negative: Tensor) -> Tensor:
        """Return the loss of each sample [n] from the same two logarithms as :meth:`terms`.

        mlcd (Eq. 5) is the sum of the two terms. mlc (Eq. 4) and single are the logarithm of
        1 + the product of the two sums; single differs by having one positive.
        """
        if self.kind == "mlcd":
            first, second = self.terms(positive, negative)
            return first + second
        return torch.logaddexp(positive + negative, positive.new_zeros(()))

    def distinct(self, labels: Tensor, num_classes: int) -> Tensor:
        """Return the positives of each sample: int64 [n, l], each class once, the rest −1.

        single keeps the first label of a row that is not padding ([n, 1]); the others are then
        ordinary classes, which may be drawn as negatives, as they are to a single-label run.
        Raises ValueError for labels outside −1 … num_classes − 1.
        """
        if labels.ndim != 2 or labels.is_floating_point():
            raise ValueError(f"labels {tuple(labels.shape)}: expected integers [samples, l]")
        labels = labels.long()
        if labels.numel() and not -1 <= int(labels.min()) <= int(labels.max()) < num_classes:
            raise ValueError(f"labels: expected -1 or a class below {num_classes}")
        if self.kind == "single":
            first = (labels >= 0).byte().argmax(1, keepdim=True) if labels.shape[1] else None
            return labels if first is None else labels.gather(1, first)
        ordered = labels.sort(1).values
        again = torch.zeros_like(ordered, dtype=torch.bool)
        again[:, 1:] = ordered[:, 1:] == ordered[:, :-1]
        return ordered.masked_fill(again, -1)
