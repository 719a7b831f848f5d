"""The losses as one public function for one process."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from mlcd.losses.objective import Objective, unit_rows, working_precision
from mlcd.losses.sharded_loss import ShardedLoss


def cluster_loss(
    embedding: Tensor,
    centroid: Tensor,
    labels: Tensor,
    negatives: Tensor | None = None,
    *,
    kind: str,
    scale: float,
    margin: float,
    margin_type: str,
    block: int | None = None,
) -> Tensor:
    """Return the mean loss of a batch, differentiable in `embedding` and `centroid`.

    With s_j = scale · cos(e, w_j), P the sample's positives and N' the negatives that are not
    among its positives (An et al., arXiv 2407.17331):

    - `mlcd` (Eq. 5): log(1 + Σ_P exp(−s_i)) + log(1 + Σ_N' exp(s_j));
    - `mlc` (Eq. 4): log(1 + Σ_N' exp(s_j) · Σ_P exp(−s_i));
    - `single`: log(1 + Σ_N' exp(s_j − s_p)), p the sample's first label.

    embedding: float [B, d]; centroid: float [K, d]; both are normalized inside, in float32 or
    float64. labels: integers [B, l]; a class that is repeated in a row counts once; −1 is padding.
    A sample without any label has no positive term: under mlcd it still has its negative term,
    under mlc and single its loss is 0. negatives: class ids [M], each counted once, or None for
    all K classes. margin: taken from the positives only (see :class:`~mlcd.losses.Objective`).
    block: None for plain autograd, which holds all B · M logits; a number of classes to hold the
    logits of so many at a time, recomputed in the backward pass, with equal results.

    Raises ValueError for shapes, labels or settings that do not fit.
    """
    objective = Objective(kind, scale, margin, margin_type)
    if embedding.ndim != 2 or centroid.ndim != 2 or embedding.shape[1] != centroid.shape[1]:
        raise ValueError(
            f"embedding {tuple(embedding.shape)} and centroid {tuple(centroid.shape)}: "
            "expected [B, d] and [K, d]"
        )
    if len(labels) != len(embedding) or len(embedding) == 0:
        raise ValueError(f"labels: {len(labels)} rows for {len(embedding)} embeddings")
    if block is not None and block < 1:
        raise ValueError(f"block {block}: expected at least 1 class")
    positives = objective.distinct(labels, len(centroid))
    if negatives is None:
        sampled = torch.arange(len(centroid), device=centroid.device)
    else:
        sampled = negatives.long().unique()
        if len(sampled) and not 0 <= int(sampled[0]) <= int(sampled[-1]) < len(centroid):
            raise ValueError(f"negatives: expected classes from 0 to {len(centroid) - 1}")
    weight = working_precision(centroid)
    # In float64, so that a length's rounding does not move all of a sample's cosines together.
    unit = unit_rows(embedding.double()).to(weight.dtype)
    if block is not None:
        # torch leaves Function.apply untyped.
        loss: Tensor = _Blocked.apply(  # type: ignore[no-untyped-call]
            unit, weight, objective, positives, sampled, block
        )
        return loss
    with torch.autocast(unit.device.type, enabled=False):
        return _plain(unit, unit_rows(weight), objective, positives, sampled)


def _plain(
    unit: Tensor, center: Tensor, objective: Objective, positives: Tensor, sampled: Tensor
) -> Tensor:
    """The formulas as they stand, for autograd; holds every logit."""
    present = positives >= 0
    cosine = (unit[:, None] * center[positives.clamp(min=0)]).sum(-1, dtype=torch.float64)
    pull = (-objective.positive_logit(cosine)).masked_fill(~present, -math.inf)

    spare = len(center)  # A column that padding may mark without marking a class.
    own = torch.zeros(len(unit), spare + 1, dtype=torch.bool, device=unit.device)
    own.scatter_(1, positives.where(present, spare), True)
    logit = objective.scale * (unit @ center[sampled].t())
    push = logit.masked_fill(own[:, sampled], -math.inf)
    return objective.loss(pull.logsumexp(1), push.logsumexp(1)).mean().to(unit.dtype)


class _Blocked(torch.autograd.Function):
    """The same value and gradients by :class:`~mlcd.losses.sharded_loss.ShardedLoss`."""

    @staticmethod
    def forward(
        ctx: Any,
        unit: Tensor,
        weight: Tensor,
        objective: Objective,
        positives: Tensor,
        sampled: Tensor,
        block: int,
    ) -> Tensor:
        sharded = ctx.sharded = ShardedLoss(objective, unit, weight, sampled, positives, block)
        loss: Tensor = sharded.evaluate(want_embedding_gradient=ctx.needs_input_grad[0])
        # Kept by autograd so that a center changed in between is noticed.
        ctx.save_for_backward(weight)
        return loss.to(unit.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (weight,) = ctx.saved_tensors
        embedding_gradient = centroid_gradient = None
        if ctx.needs_input_grad[0]:
            embedding_gradient = ctx.sharded.embedding_gradient * upstream
        if ctx.needs_input_grad[1]:
            rows, values = ctx.sharded.row_gradient(upstream)
            centroid_gradient = torch.zeros_like(weight).index_copy_(0, rows, values)
        return embedding_gradient, centroid_gradient, None, None, None, None
