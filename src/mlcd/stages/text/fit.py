"""Whether a text tower fits its GPUs: looked at before the first step, by shapes.

Another pair's text is a negative, so that a rank takes its whole share of a step at once: there is
no micro-batch to choose. What does not fit is refused with the nearest that does.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
import torch.distributed as dist

from mlcd.config.text import Text
from mlcd.launch.process_group import RankPlace
from mlcd.models import text_tower as towers
from mlcd.models.footprint import Footprint, measure
from mlcd.training.memory import Need, encoder_state, usable
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER
from mlcd.utils.units import decimal_size

#: Ranks that a refusal proposes at most.
_MOST_RANKS = 4096


@dataclasses.dataclass(frozen=True)
class Job:
    """A text tower's training on W `ranks`: a global `batch` of pairs of `dim` numbers."""

    ranks: int
    stage: int
    batch: int
    dim: int
    halves: bool
    checkpointing: bool

    @property
    def share(self) -> int:
        """Pairs of a rank per step."""
        return self.batch // self.ranks


def job(section: Text, ranks: int, dim: int) -> Job:
    """Return what the memory model asks of a training on GPUs."""
    return Job(
        ranks, section.zero_stage, section.batch_size, dim, section.precision == "bf16",
        section.activation_checkpointing,
    )  # fmt: skip


def footprint(section: Text, dim: int, checkpointing: bool) -> Footprint:
    """Return the footprint of the section's tower, per caption."""
    with torch.device("meta"):
        tower = towers.build(section, dim)
    if checkpointing:
        tower.transformer.set_grad_checkpointing(True)
    return measure(
        tower,
        bf16=section.precision == "bf16",
        inputs=lambda n: torch.zeros(n, section.context_length, dtype=torch.int64, device="cpu"),
    )


def need(asked: Job, found: Footprint) -> Need:
    """Return what a rank takes.

    Of the loss, each way between images and texts: float32 logits [share, batch], their softmax
    and its gradient, one way's kept for the other; the gathered rows and their gradients.
    """
    logits = 4 * asked.share * asked.batch
    return Need(
        encoder=encoder_state(
            found.weights, asked.ranks, asked.stage, accumulated=False, halves=asked.halves
        ) + found.buffers,
        centers=0,
        images=found.peak(asked.share),
        loss=5 * logits + 4 * 4 * asked.batch * asked.dim,
    )  # fmt: skip


def check(section: Text, place: RankPlace, dim: int) -> None:
    """Refuse, on GPUs, what does not fit that with the least memory; collective.

    Raises :class:`UserError` on all ranks.
    """
    if place.device.type != "cuda":
        return
    total = torch.cuda.get_device_properties(place.device).total_memory
    memory = torch.tensor(total, device=place.device)
    dist.all_reduce(memory, dist.ReduceOp.MIN)
    refused: list[str | None] = [None]
    if place.is_main:
        asked = job(section, place.world_size, dim)
        refused = [refusal(section, asked, int(memory))]
    dist.broadcast_object_list(refused, 0)
    if refused[0]:
        raise UserError(refused[0])


def refusal(section: Text, asked: Job, memory: int) -> str | None:
    """Say that a GPU of `memory` bytes is too small and what would fit; None if it is not."""
    taken = need(asked, footprint(section, asked.dim, asked.checkpointing))
    told = (
        f"{asked.share} pairs of {asked.batch} at once take {decimal_size(taken.total)} (tower "
        f"{decimal_size(taken.encoder)}, captions {decimal_size(taken.images)}, loss "
        f"{decimal_size(taken.loss)}) of a GPU's {decimal_size(memory)}"
    )
    if taken.total <= usable(memory):
        LOGGER.info("%s", told)
        return None
    return f"text: {told}, of which {decimal_size(usable(memory))} are planned for; " + next(
        (f"set {words}" for words, other in _ways_out(asked)
         if need(other, footprint(section, asked.dim, other.checkpointing)).total
         <= usable(memory)),
        "take GPUs with more memory",
    )  # fmt: skip


def _ways_out(asked: Job) -> Iterator[tuple[str, Job]]:
    """Iterate over other settings, the nearest first, and their words."""
    also = ""
    if not asked.checkpointing:
        asked = dataclasses.replace(asked, checkpointing=True)
        also = "text.activation_checkpointing: true"
        yield also, asked
        also += ", "
    for stage in range(asked.stage + 1, 4) if asked.ranks > 1 else ():
        yield f"{also}text.zero_stage: {stage}", dataclasses.replace(asked, stage=stage)
    ranks = 2 * asked.ranks
    while ranks <= min(_MOST_RANKS, asked.batch):
        if asked.batch % ranks == 0:
            yield f"{also}{ranks} GPUs", dataclasses.replace(asked, ranks=ranks)
        ranks *= 2
    batch = asked.batch // 2
    while batch >= max(2, asked.ranks):
        if batch % asked.ranks == 0:
            yield f"{also}text.batch_size: {batch}", dataclasses.replace(asked, batch=batch)
        batch //= 2
