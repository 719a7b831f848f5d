"""The classifier whose class centers are divided over the ranks."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from mlcd.classifier.collectives import Exchange
from mlcd.classifier.gradient import RowGradient
from mlcd.classifier.sampler import NegativeSampler, generator
from mlcd.losses.objective import Objective, unit_rows
from mlcd.losses.sharded_loss import ShardedLoss

# The sums of exponentials of scaled similarities are held in float64, which ends near e^709.
LARGEST_LOGIT = 600
#: Bytes of a block of logits by default: a CPU's cache; what keeps a GPU busy.
CPU_BLOCK, CUDA_BLOCK = 8 << 20, 256 << 20
# Rows that are set together; random rows are a function of it.
_ROWS = 4096
_DRAWING = ThreadPoolExecutor(1, "negatives")
STATISTICS = ("positive_term", "negative_term", "positive_similarity", "negative_similarity")


def shard_bounds(num_classes: int, world: int, rank: int) -> tuple[int, int]:
    """Return [start, stop) of the rows of `rank`: contiguous, and even to within one row."""
    return num_classes * rank // world, num_classes * (rank + 1) // world


def touched_rows(num_classes: int, local: int, sampled: int, positives: int) -> int:
    """Return a bound on the rows with a gradient, of the `local` ones that a rank owns.

    sampled: negatives drawn of all num_classes. positives: labels of the samples of all ranks.
    """
    return min(local, -(-sampled * local // num_classes) + positives)


def step_memory(dim: int, touched: int, batch: int, world: int, labels: int, block: int) -> int:
    """Return a bound in bytes on what forward and backward of [batch, dim] embeddings with [batch,
    labels] labels take on each of `world` ranks, beyond its centers: the gradient of `touched`
    rows, a block of logits, and copies of the embeddings of the local and of the global batch.
    """
    samples = batch * world
    copies = dim * (20 * samples + 48 * batch) + samples * (160 * labels + 100)
    return touched * (4 * dim + 24) + block + copies


class ShardedClassifier(nn.Module):
    """Class centers over W ranks and the loss of a global batch against them.

    num_classes K and dim d: the whole matrix is [K, d]; this rank holds rows [start, stop) as the
    float32 parameter `weight`. kind, scale, margin, margin_type: see
    :func:`mlcd.losses.cluster_loss`. negative_ratio r: exactly round(r · K) classes are drawn as
    negatives at each step, one set for the whole batch, a function of (seed, step) alone.
    group: a process group, or None for all ranks (or for one process, where none is initialized).

    memory_limit: bytes that a block of logits with its centers may take on this rank; None means
    8 MiB on a CPU (its cache) and 256 MiB on a GPU. compute_dtype: of the matrix products and of
    the gathered embeddings; sums are in float32 or float64 always. None means bfloat16 where a
    CUDA device has it, else float32. encoder_gradients: `averaged` where the encoder's gradients
    are averaged over ranks after the backward pass, as DeepSpeed and DDP do: the gradient that is
    handed to the encoder is then multiplied by W, so that the average is the gradient of the loss.
    `summed` leaves it as it is. skip_unlabeled: a sample without a label has the loss 0 and no
    gradient, and still counts in the mean; else it is pushed from the negatives under `mlcd`.

    The gradient of the centers goes to `gradient` (a :class:`RowGradient` of local rows, or None),
    not to `weight.grad`, which would be dense; it grows over backward passes until
    :meth:`zero_grad`. :class:`~mlcd.classifier.RowSparseAdamW` takes it from there.

    Raises ValueError for settings that do not fit, among them a scale · (1 + margin) over 600.
    """

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        kind: str,
        scale: float,
        margin: float,
        margin_type: str,
        negative_ratio: float,
        seed: int,
        group: dist.ProcessGroup | None = None,
        memory_limit: int | None = None,
        compute_dtype: torch.dtype | None = None,
        encoder_gradients: Literal["averaged", "summed"] = "averaged",
        skip_unlabeled: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        if num_classes < 1 or dim < 1:
            raise ValueError(f"num_classes {num_classes}, dim {dim}: expected at least 1")
        if not 0 < negative_ratio <= 1:
            raise ValueError(f"negative_ratio {negative_ratio}: expected above 0, at most 1")
        if scale * (1 + margin) > LARGEST_LOGIT:
            raise ValueError(f"scale {scale}: scale · (1 + margin) may be {LARGEST_LOGIT} at most")
        if compute_dtype not in (None, torch.float32, torch.bfloat16):
            raise ValueError(f"compute_dtype {compute_dtype}: expected float32 or bfloat16")
        if encoder_gradients not in ("averaged", "summed"):
            raise ValueError(f"encoder_gradients {encoder_gradients!r}: averaged or summed")
        self.objective = Objective(kind, scale, margin, margin_type)
        self.num_classes, self.dim, self.seed = num_classes, dim, seed
        self.memory_limit, self.compute_dtype = memory_limit, compute_dtype
        self.encoder_gradients, self.skip_unlabeled = encoder_gradients, skip_unlabeled
        self.exchange = Exchange(group)
        self.start, self.stop = shard_bounds(num_classes, self.exchange.world, self.exchange.rank)
        self.sampler = NegativeSampler(num_classes, round(negative_ratio * num_classes), seed)
        self.weight = nn.Parameter(torch.empty(self.stop - self.start, dim, device=device))
        self.gradient: RowGradient | None = None
        self.statistics: dict[str, Tensor] = {}
        self._drawn: tuple[int, Tensor] | None = None
        self._ahead: tuple[int, Future[np.ndarray]] | None = None
        #: Whether the next step's negatives are drawn by a thread, beside a GPU's work.
        self.draws_ahead = self.weight.is_cuda
        self.reset_parameters()

    def extra_repr(self) -> str:
        return (
            f"num_classes={self.num_classes}, dim={self.dim}, rows={self.start}…{self.stop - 1}, "
            f"{self.objective}, sampled={self.sampler.count}"
        )

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Set random unit rows, a function of (seed, row) alone."""
        for block in range(self.start // _ROWS, -(-self.stop // _ROWS)):
            first = block * _ROWS
            count = min(_ROWS, self.num_classes - first)
            rows = generator(self.seed, block, 2).standard_normal((count, self.dim), "float32")
            low, high = max(self.start, first), min(self.stop, first + count)
            part = unit_rows(torch.from_numpy(rows[low - first : high - first]))
            self.weight[low - self.start : high - self.start] = part.to(self.weight.device)

    @torch.no_grad()
    def load_rows(self, source: Any) -> None:
        """Set the local rows from `source` [K, d]: a tensor, an array or an HDF5 dataset.

        Only the rows of this rank are read, some thousands at a time. Raises ValueError if the
        shape is not [K, d] or a value is not finite.
        """
        if tuple(source.shape) != (self.num_classes, self.dim):
            expected = (self.num_classes, self.dim)
            raise ValueError(f"centers {tuple(source.shape)}: expected {expected}")
        for first in range(self.start, self.stop, _ROWS):
            last = min(first + _ROWS, self.stop)
            part = torch.as_tensor(source[first:last]).to(self.weight)
            if not bool(part.isfinite().all()):
                raise ValueError(f"centers: a value in rows {first} … {last - 1} is not finite")
            self.weight[first - self.start : last - self.start] = part

    def sampled_rows(self, step: int) -> Tensor:
        """Return the negatives of step `step` that this rank owns: local rows, int64, rising.

        On a GPU those of the step after are drawn meanwhile, by a thread.
        """
        if self._drawn is None or self._drawn[0] != step:
            ahead = self._ahead if self._ahead and self._ahead[0] == step else None
            classes = ahead[1].result() if ahead else self._draw(step)
            self._drawn = step, torch.from_numpy(classes).to(self.weight.device)
            if self.draws_ahead:
                self._ahead = step + 1, _DRAWING.submit(self._draw, step + 1)
        return self._drawn[1].to(self.weight.device)

    def _draw(self, step: int) -> np.ndarray:
        return self.sampler.draw(step, self.start, self.stop) - self.start

    def block_size(self, samples: int) -> int:
        """Return how many centers' logits against `samples` embeddings fit in `memory_limit`.

        A class takes `samples` float32 logits and some copies of its center; see
        docs/explanation/learning-core.md.
        """
        halves = self._product_dtype() == torch.bfloat16
        column = samples * (6 if halves else 4) + self.dim * (14 if halves else 12)
        return max(1, self._block_bytes() // column)

    def peak_memory(self, batch: int, labels: int) -> int:
        """Return a bound in bytes on what forward and backward of [batch, d] embeddings with
        [batch, labels] labels take on this rank, beyond its centers: the row gradient, a block,
        and copies of the embeddings of the local and of the global batch.
        """
        local = self.stop - self.start
        touched = touched_rows(
            self.num_classes, local, self.sampler.count, batch * self.exchange.world * labels
        )
        return step_memory(
            self.dim, touched, batch, self.exchange.world, labels, self._block_bytes()
        )

    def _block_bytes(self) -> int:
        if self.memory_limit is not None:
            return self.memory_limit
        return CUDA_BLOCK if self.weight.is_cuda else CPU_BLOCK

    def forward(self, embedding: Tensor, labels: Tensor, step: int) -> Tensor:
        """Return the mean loss over the global batch, float32, the same value on every rank.

        embedding: float [B, d], this rank's, normalized inside; labels: integers [B, l], global
        class ids, −1 pads; both of the same shape on every rank. step: chooses the negatives, so
        the micro-batches of one optimizer step pass the same number. Every rank must also call
        backward, once; the centers must not change between the two.

        Sets `statistics`: positive_term and negative_term, the two terms of Eq. 5 averaged over
        samples, and positive_similarity and negative_similarity, mean cosines (NaN where there
        are none), float64 tensors over the global batch, computed without waiting for the device.
        With skip_unlabeled also labeled, the share of samples that have a label.
        """
        if embedding.ndim != 2 or embedding.shape[1] != self.dim or len(embedding) == 0:
            raise ValueError(f"embedding {tuple(embedding.shape)}: expected [B, {self.dim}]")
        if len(labels) != len(embedding):
            raise ValueError(f"labels: {len(labels)} rows for {len(embedding)} embeddings")
        positives = self.objective.distinct(labels, self.num_classes).to(embedding.device)
        unit = unit_rows(embedding.double()).float()
        # torch leaves Function.apply untyped.
        loss: Tensor = _ShardedLoss.apply(  # type: ignore[no-untyped-call]
            unit, self.weight, self, positives, step
        )
        return loss

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Drop the gradient of the rows."""
        super().zero_grad(set_to_none)
        self.gradient = None

    def _product_dtype(self) -> torch.dtype:
        if self.compute_dtype is not None:
            return self.compute_dtype
        halves = self.weight.is_cuda and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if halves else torch.float32


class _ShardedLoss(torch.autograd.Function):
    """Loss and gradients of one shard, with the exchange between ranks."""

    @staticmethod
    def forward(
        ctx: Any,
        unit: Tensor,
        weight: Tensor,
        classifier: ShardedClassifier,
        positives: Tensor,
        step: int,
    ) -> Tensor:
        exchange = classifier.exchange
        everyone = exchange.gather(unit.to(classifier._product_dtype()))
        positives = exchange.gather(positives)
        mine = (positives >= classifier.start) & (positives < classifier.stop)
        sharded = ShardedLoss(
            classifier.objective,
            everyone,
            weight,
            classifier.sampled_rows(step),
            (positives - classifier.start).where(mine, -1),
            classifier.block_size(len(everyone)),
            skip_unlabeled=classifier.skip_unlabeled,
        )
        loss = sharded.evaluate(
            want_embedding_gradient=ctx.needs_input_grad[0],
            reduce=exchange.add if exchange.world > 1 else None,
        )
        positive, positives_seen, negative, negatives_seen = sharded.statistics
        values = (
            sharded.positive_term,
            sharded.negative_term,
            positive / positives_seen,
            negative / negatives_seen,
        )
        classifier.statistics = dict(zip(STATISTICS, values, strict=True))
        if classifier.skip_unlabeled:
            classifier.statistics["labeled"] = sharded.labeled
        ctx.sharded, ctx.classifier = sharded, classifier
        # Kept by autograd so that a center changed in between is noticed.
        ctx.save_for_backward(weight)
        return loss.float()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        (_,) = ctx.saved_tensors
        classifier, exchange = ctx.classifier, ctx.classifier.exchange
        # Given up here: the caller may hold the loss, and with it this object, for long.
        sharded, ctx.sharded = ctx.sharded, None
        if sharded is None:
            raise RuntimeError("ShardedClassifier: one backward pass for each forward pass")
        finish = None
        if ctx.needs_input_grad[0]:
            copies = exchange.world if classifier.encoder_gradients == "averaged" else 1
            finish = exchange.scatter_sum(sharded.embedding_gradient * (upstream * copies))
        if ctx.needs_input_grad[1]:
            # The exchange of embedding gradients is under way meanwhile.
            rows, values = sharded.row_gradient(upstream)
            if classifier.gradient is None:
                classifier.gradient = RowGradient(rows, values)
            else:
                classifier.gradient.add(rows, values)
        return finish() if finish else None, None, None, None, None
