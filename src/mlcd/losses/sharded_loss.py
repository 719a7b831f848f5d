"""The loss over one shard of the class centers, its logits in blocks and never whole.

A rank holds some rows of the centers and all N embeddings of the step. It computes

1. the log-sum-exp of its sampled negatives by a running maximum over blocks of classes, and in the
   same pass the softmax-weighted mean of those centers, which is the embedding gradient of the
   negatives but for a factor that is known once the sums are;
2. the similarities of the positives it owns;
3. after two sums per sample are added over the ranks, the loss and its derivatives by those sums;
4. in the backward pass, the logits again, block by block, for the gradient of its own rows.

Four matrix products in all, one more than with the logits kept. The embedding gradient exists at
the end of the forward pass, so that its exchange between ranks runs beside step 4.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import Tensor

from mlcd.losses.objective import SHORTEST, Objective


def product(left: Tensor, right: Tensor, out: Tensor) -> Tensor:
    """Write left @ right to `out` and return it; bfloat16 factors are reduced in float32."""
    if left.dtype != torch.bfloat16:
        return torch.mm(left, right, out=out)
    if left.is_cuda:
        return torch.mm(left, right, torch.float32, out=out)
    return torch.mm(left.float(), right.float(), out=out)


P = ParamSpec("P")
R = TypeVar("R")


def _without_autocast(
    method: Callable[Concatenate[ShardedLoss, P], R],
) -> Callable[Concatenate[ShardedLoss, P], R]:
    """The products choose their own precision; autocast would halve it behind their back."""

    @functools.wraps(method)
    def wrapped(self: ShardedLoss, /, *arguments: P.args, **options: P.kwargs) -> R:
        with torch.autocast(self.weight.device.type, enabled=False):
            return method(self, *arguments, **options)

    return wrapped


class ShardedLoss:
    """One evaluation of the loss of N embeddings against the rows of one shard.

    unit: normalized embeddings [N, d], the dtype of the matrix products (float64, float32 or
    bfloat16). weight: the shard's centers [k, d], float32 or float64, not normalized. sampled:
    rows of `weight` that are negatives, int64 [m], sorted, distinct. positives: int64 [N, l], the
    row of `weight` that a positive lies in, −1 where there is none or another rank owns it; a row
    at most once per sample. block: number of centers whose logits are held at a time.
    skip_unlabeled: a sample without a positive on any rank has the loss 0 and no gradient, whatever
    the kind; the means stay those over all N samples.

    Attributes after :meth:`evaluate`: `embedding_gradient` [N, d] (this shard's part, or None)
    and `statistics`, a float64 [4] of sums over the shard: positive cosines and their number,
    negative cosines and their number; `positive_term` and `negative_term`, means over samples;
    `labeled`, the share of samples with a positive on any rank.
    """

    def __init__(
        self,
        objective: Objective,
        unit: Tensor,
        weight: Tensor,
        sampled: Tensor,
        positives: Tensor,
        block: int,
        *,
        skip_unlabeled: bool = False,
    ) -> None:
        self.objective, self.unit, self.weight = objective, unit, weight
        self.skip_unlabeled = skip_unlabeled
        self.sampled, self.block = sampled, block
        self.samples, self.slots = positives.shape
        self.embedding_gradient: Tensor | None = None

        self.pair_sample, self.pair_slot = (positives >= 0).nonzero(as_tuple=True)
        self.pair_row = positives[self.pair_sample, self.pair_slot]
        count = len(sampled)
        column = torch.searchsorted(sampled, self.pair_row)
        drawn = torch.zeros_like(column, dtype=torch.bool)
        if count:
            drawn = sampled[column.clamp(max=count - 1)] == self.pair_row
        self.drawn = drawn
        # Rows with a gradient: the sampled ones in their order, then positives not among them.
        extra = self.pair_row[~drawn].unique()
        self.rows = torch.cat([sampled, extra])
        self.pair_place = column.where(drawn, count + torch.searchsorted(extra, self.pair_row))

        # A sample's own positives among the sampled classes, in the order of the blocks.
        order = column[drawn].argsort(stable=True)
        self.own_column = column[drawn][order]
        self.own_sample = self.pair_sample[drawn][order]
        starts = torch.arange(0, count + block, block, device=sampled.device)
        self.own_bounds = torch.searchsorted(self.own_column, starts).tolist()
        # One row of pairs takes three vectors of length d; a block of logits pays for it.
        self.pair_block = max(1, block * self.samples // (3 * max(1, unit.shape[1])))

    @_without_autocast
    def evaluate(
        self,
        *,
        want_embedding_gradient: bool = True,
        reduce: Callable[[Tensor], None] | None = None,
    ) -> Tensor:
        """Return the mean loss over the N samples, float64.

        `reduce` adds a float64 tensor in place over the ranks; None where this shard is all.
        """
        total, mean, negative_local, center_sum = self._negative_sums(want_embedding_gradient)
        cosine = self._pair_cosines()
        with torch.enable_grad():
            variable = cosine.requires_grad_()
            logit = self.objective.positive_logit(variable)
            (slope,) = torch.autograd.grad(logit.sum(), variable)
        cosine, logit = cosine.detach(), logit.detach()
        pull = cosine.new_full((self.samples, self.slots), -math.inf)
        pull[self.pair_sample, self.pair_slot] = -logit
        positive = pull.logsumexp(1) if self.slots else pull.new_full((self.samples,), -math.inf)
        negative = negative_local

        # The cosines of all pairs of samples and sampled classes, less the pairs masked out.
        own = cosine[self.drawn]
        negative_cosine = (self.unit.sum(0, dtype=torch.float64) * center_sum).sum() - own.sum()
        pairs = self.samples * len(self.sampled) - len(own)
        counts = torch.tensor([len(cosine), pairs], dtype=torch.float64).to(cosine.device)
        self.statistics = torch.stack([cosine.sum(), counts[0], negative_cosine, counts[1]])
        if reduce is not None:
            # float64 holds the sums themselves: no maximum has to be agreed on beforehand.
            packed = torch.cat([positive.exp(), negative.exp(), self.statistics])
            reduce(packed)
            positive, negative, self.statistics = packed.split([self.samples, self.samples, 4])
            positive, negative = positive.log(), negative.log()

        with torch.enable_grad():
            leaves = positive.detach().requires_grad_(), negative.detach().requires_grad_()
            loss = self._counted(self.objective.loss(*leaves), positive).mean()
            by_positive, by_negative = torch.autograd.grad(loss, leaves)
        first, second = self.objective.terms(positive, negative)
        self.labeled = (positive > -math.inf).double().mean()
        self.positive_term = first.mean()
        self.negative_term = self._counted(second, positive).mean()

        # Derivative of the loss by each positive's cosine.
        share = (-logit - positive[self.pair_sample]).exp()
        self.pair_factor = -by_positive[self.pair_sample] * share * slope
        self.pair_cosine = cosine
        self.negative = torch.where(negative.isinf(), 0.0, negative)
        self.by_negative = by_negative
        if mean is not None:
            weighed = (negative_local - self.negative).exp() * by_negative / total.clamp(min=1e-300)
            mean.mul_((weighed * self.objective.scale).to(mean.dtype)[:, None])
            for part in self._pair_parts():
                center, _ = self._centers(self.pair_row[part])
                factor = self.pair_factor[part, None].to(mean.dtype)
                mean.index_add_(0, self.pair_sample[part], center.mul_(factor))
            self.embedding_gradient = mean
        return loss.detach()

    def _counted(self, values: Tensor, positive: Tensor) -> Tensor:
        """Return what the samples [N] add, 0 of those that are skipped for having no positive."""
        return values.where(positive > -math.inf, 0.0) if self.skip_unlabeled else values

    @_without_autocast
    def row_gradient(self, upstream: Tensor | float = 1.0) -> tuple[Tensor, Tensor]:
        """Return the shard's touched rows, int64 [t], distinct, and their gradient [t, d].

        `upstream` is the derivative by the loss. Rows that are not returned have no gradient.
        """
        dtype = self.weight.dtype
        values = self.weight.new_empty(len(self.rows), self.weight.shape[1])
        values[len(self.sampled) :] = 0
        # What rounding the exponent's offset to `dtype` leaves out goes into the factor.
        offset = self.negative.to(dtype)
        factor = (offset.double() - self.negative).exp() * self.by_negative * self.objective.scale
        weighed = (self.unit * (factor * upstream)[:, None].to(dtype)).to(self.unit.dtype)
        for first, center, inverse, logit in self._logit_blocks():
            share = logit.sub_(offset[:, None]).exp_().to(self.unit.dtype)
            block = values[first : first + len(center)]
            product(share.t(), weighed, block)
            block.addcmul_((block * center).sum(1, keepdim=True), center, value=-1).mul_(inverse)
        for part in self._pair_parts():
            center, inverse = self._centers(self.pair_row[part])
            cosine = self.pair_cosine[part, None].to(dtype)
            tangent = self.unit[self.pair_sample[part]].to(dtype).addcmul_(center, cosine, value=-1)
            factor = (self.pair_factor[part] * upstream)[:, None].to(dtype)
            values.index_add_(0, self.pair_place[part], tangent.mul_(inverse * factor))
        return self.rows, values

    def _centers(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the unit centers of `rows` [n, d] and their inverse lengths [n, 1]."""
        center = self.weight.index_select(0, rows)
        length = torch.linalg.vector_norm(center, dim=1, keepdim=True)
        length = torch.where(length > SHORTEST, length, math.inf)
        return center.div_(length), length.reciprocal()

    def _logit_blocks(self) -> Iterator[tuple[int, Tensor, Tensor, Tensor]]:
        """Yield first column, unit centers, inverse lengths, and masked logits [N, n] of a block.

        The logits' buffer is used again for the next block.
        """
        scaled = self.unit * self.objective.scale
        buffer = self.weight.new_empty(self.samples * min(self.block, len(self.sampled)))
        for index, first in enumerate(range(0, len(self.sampled), self.block)):
            center, inverse = self._centers(self.sampled[first : first + self.block])
            place = buffer[: self.samples * len(center)].view(self.samples, len(center))
            logit = product(scaled, center.to(scaled.dtype).t(), place)
            own = slice(self.own_bounds[index], self.own_bounds[index + 1])
            logit[self.own_sample[own], self.own_column[own] - first] = -math.inf
            yield first, center, inverse, logit

    def _negative_sums(self, want_mean: bool) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
        """Return, over the shard's sampled classes: Σ exp(s − max) [N], the sum of the centers so
        weighted [N, d] (or None), log Σ exp(s) [N], and the plain sum of the centers [d].
        """
        dtype, width = self.weight.dtype, self.weight.shape[1]
        # Below any logit, so that a sample all of whose classes are masked has the sum 0.
        top = self.weight.new_full((self.samples,), -2 * self.objective.scale)
        total = top.new_zeros(self.samples, dtype=torch.float64)
        mean = top.new_zeros(self.samples, width) if want_mean else None
        center_sum = top.new_zeros(width, dtype=torch.float64)
        for _, center, _, logit in self._logit_blocks():
            higher = torch.maximum(top, logit.amax(1))
            share = logit.sub_(higher[:, None]).exp_()
            shrink = (top - higher).exp_()
            total.mul_(shrink).add_(share.sum(1))
            center_sum += center.sum(0)
            if mean is not None:
                mean.mul_(shrink[:, None])
                if self.unit.dtype == dtype:
                    mean.addmm_(share, center)
                else:
                    halves = share.to(self.unit.dtype), center.to(self.unit.dtype)
                    mean += product(*halves, torch.empty_like(mean))
            top = higher
        return total, mean, top.double() + total.log(), center_sum

    def _pair_cosines(self) -> Tensor:
        """Return the cosine of every owned positive, float64 [p].

        Summed in float64, because arcface is steep near a cosine of 1.
        """
        parts = []
        for part in self._pair_parts():
            center = self.weight.index_select(0, self.pair_row[part])
            length = torch.linalg.vector_norm(center, dim=1, dtype=torch.float64)
            dot = center.mul_(self.unit[self.pair_sample[part]]).sum(1, dtype=torch.float64)
            parts.append(dot / torch.where(length > SHORTEST, length, math.inf))
        return torch.cat(parts) if parts else self.weight.new_zeros(0, dtype=torch.float64)

    def _pair_parts(self) -> Iterator[slice]:
        for first in range(0, len(self.pair_row), self.pair_block):
            yield slice(first, first + self.pair_block)
