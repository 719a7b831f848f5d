"""The memory of a GPU in training: what lies there all the time, and what a micro-batch adds.

Bytes by arithmetic; what the encoder holds for a backward pass comes from
:mod:`mlcd.models.footprint`. All of a network's numbers are float32 (bf16 is autocast), so W ranks
at ZeRO stage s hold of each of its P weights:

    stage   weight   gradient   copy of the share   moments
    0       4        4          none                8
    1       4        4          4 / W               8 / W
    2       4        4 / W      4 / W               8 / W
    3       4 + 4 / W  4 / W    4 / W               8 / W

Stage 2 keeps its gradients whole, as stage 1 does, where a step has several micro-batches: they are
reduced once per step. At stage 3 the weights in use are gathered, which DeepSpeed keeps up to 1e9
of, in bfloat16 under autocast. Gradients are reduced in parts (:data:`PART`), one while the next
fills; at stage 0 in parts of :data:`WHOLE`. See :mod:`mlcd.training.communication`.
"""

from __future__ import annotations

import dataclasses

from mlcd.classifier.sharded import CUDA_BLOCK, step_memory, touched_rows
from mlcd.models.footprint import Footprint

#: Numbers that gradients are reduced in at once on GPUs: few enough that most of the exchange runs
#: beside the backward pass, many enough that a network is busy with each.
PART = 50_000_000
#: Those of DeepSpeed's own default, and of its stage 0.
WHOLE = 500_000_000
#: Weights that stage 3 keeps gathered at most, as DeepSpeed's default.
_GATHERED = 1_000_000_000
#: CUDA's context, the libraries' workspaces and NCCL's buffers: assumed.
CONTEXT = 1_500_000_000
#: Part of the memory that is left to the allocator's losses: assumed.
MARGIN = 0.05
#: Working copies of the optimizers' steps: slices of rows of 64 MiB, some six at a time.
_STEP = 6 * (64 << 20)


@dataclasses.dataclass(frozen=True)
class Job:
    """What is trained on W `ranks`: `classes` centers of `dim` numbers, `labels` per image,
    `sampled` negatives per step, a global `batch` of images of `side` pixels, under ZeRO `stage`.
    `block`: bytes of a block of logits. `halves`: the classifier's products are in bfloat16.
    `unit`: images of which every micro-batch is a multiple. `rows`: of the classifier, per image.
    """

    ranks: int
    stage: int
    batch: int
    side: int
    classes: int
    dim: int
    labels: int
    sampled: int
    block: int = CUDA_BLOCK
    halves: bool = True
    unit: int = 1
    rows: int = 1

    @property
    def share(self) -> int:
        """Images of a rank per step."""
        return self.batch // self.ranks


@dataclasses.dataclass(frozen=True)
class Need:
    """Bytes on each GPU. `encoder`: weights, gradients, moments, buckets. `centers`: those of the
    rank, with moments. `images`: pixels and activations. `loss`: the classifier's step.
    """

    encoder: int
    centers: int
    images: int
    loss: int

    @property
    def total(self) -> int:
        """All, with CUDA's context."""
        return self.encoder + self.centers + self.images + self.loss + CONTEXT


def need(job: Job, footprint: Footprint, micro_batch: int) -> Need:
    """Return what a rank of `job` takes if it takes `micro_batch` images at once."""
    local = -(-job.classes // job.ranks)
    images = footprint.peak(micro_batch) + 3 * job.side**2 * micro_batch
    return Need(
        encoder=encoder_state(
            footprint.weights,
            job.ranks,
            job.stage,
            accumulated=micro_batch < job.share,
            halves=job.halves,
        )
        + footprint.buffers,
        centers=local * (12 * job.dim + 8),
        images=max(images, _STEP),
        loss=_loss(job, local, micro_batch),
    )


def encoder_state(weights: int, ranks: int, stage: int, *, accumulated: bool, halves: bool) -> int:
    """Return bytes of weights, gradients, moments and buckets of a rank at ZeRO `stage`.

    accumulated: a step has several micro-batches. halves: gradients and weights travel as bfloat16.
    """
    whole, part = 4 * weights, 4 * -(-weights // ranks)
    sent = 2 if halves else 0  # a copy of a bucket, rounded
    bucket = (4 + sent) * min(weights, WHOLE) if stage == 0 else (8 + sent) * min(weights, PART)
    if ranks == 1 and stage == 0:
        bucket = 0
    if stage == 0:
        return 4 * whole + bucket
    if stage == 1:
        return 2 * whole + 3 * part + bucket
    if stage == 2:
        return (2 if accumulated else 1) * whole + 4 * part + bucket
    return (2 if halves else 4) * min(weights, _GATHERED) + 5 * part + bucket


def _loss(job: Job, local: int, micro_batch: int) -> int:
    """Return the classifier's working memory, with the gradient that micro-batches add up."""
    rows = micro_batch * job.rows
    touched = touched_rows(job.classes, local, job.sampled, rows * job.ranks * job.labels)
    once = step_memory(job.dim, touched, rows, job.ranks, job.labels, job.block)
    if micro_batch == job.share:
        return once
    # Beside it the sum over the micro-batches before, and that sum anew where rows are added to it.
    kept = touched_rows(job.classes, local, job.sampled, job.batch * job.rows * job.labels)
    return once + 2 * kept * (4 * job.dim + 8)


def usable(memory: int) -> int:
    """Return the bytes that may be planned for, of a GPU's `memory`."""
    return int(memory * (1 - MARGIN))


def largest(job: Job, footprint: Footprint, memory: int) -> int | None:
    """Return the largest divisor of a rank's share that fits a GPU of `memory` bytes, or None."""
    fitting = (
        size
        for size in range(job.share, 0, -1)
        if job.share % size == size % job.unit == 0
        and need(job, footprint, size).total <= usable(memory)
    )
    return next(fitting, None)


def network_bytes(job: Job, weights: int, micro_batches: int) -> int:
    """Return bytes that a rank sends over the network in a step, as rings send them: computed."""
    whole = encoder_bytes(weights, job.stage, micro_batches, halves=job.halves)
    whole += classifier_bytes(job, halves=job.halves)
    return round(whole * (job.ranks - 1) / job.ranks)


def encoder_bytes(weights: int, stage: int, micro_batches: int, *, halves: bool) -> int:
    """Return the bytes of an encoder's exchange in a step, before a ring's (W - 1) / W.

    At the stages 0 to 2 an all-reduce of the gradients, once per step, and at 1 and 2 a gather of
    the new weights. At 3, per micro-batch, a scattered sum and a gather of the weights, which stay
    for the backward pass if DeepSpeed keeps all of them, else a second one. halves: in bfloat16.
    """
    whole = (2 if halves else 4) * weights
    if stage == 3:
        return whole * micro_batches * (2 if weights <= _GATHERED else 3)
    return whole * (2 if stage == 0 else 3)


def classifier_bytes(job: Job, *, halves: bool) -> int:
    """Return those of the classifier: a gather of embeddings, a scattered sum of their gradients,
    the labels, and two sums per row. halves: the products are in bfloat16.
    """
    per_row = job.dim * (2 if halves else 4) + 4 * job.dim + 8 * job.labels + 2 * 2 * 8
    return job.batch * job.rows * per_row
