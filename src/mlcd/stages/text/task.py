"""The training of the text tower as one rank does it: forward, gather, backward, what is saved."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from mlcd.classifier.collectives import Exchange
from mlcd.data.checkpoints import Checkpoint, Snapshot
from mlcd.launch import resume
from mlcd.launch.process_group import RankPlace
from mlcd.models import text_tower as towers
from mlcd.stages.text import fit
from mlcd.stages.text.arguments import TextArguments
from mlcd.stages.text.contrastive import contrastive_loss
from mlcd.stages.text.pairs import CaptionBatch, Pairs
from mlcd.training import trainer
from mlcd.training.collectives import all_sum
from mlcd.training.lr_schedule import factor
from mlcd.training.metrics import Record
from mlcd.training.tensors import draw
from mlcd.training.trainer import require_finite
from mlcd.training.zero import ZeroEngine


def text_rank(arguments: dict[str, Any]) -> dict[str, Any]:
    """Train to the end as one rank of the process group that the environment describes.

    `arguments`: JSON values of :class:`TextArguments`. Returns ``{"steps": …}``. Raises
    :class:`UserError`; the final files are written by rank 0.
    """
    return trainer.train_rank(TextArguments.model_validate(arguments), TextTask)


class TextTask:
    """A :class:`mlcd.training.trainer.TrainingTask`: the text tower, in one piece to the end."""

    unit = "pairs"
    advice = "lower text.lr, or set text.clip_norm"

    def __init__(
        self, arguments: TextArguments, place: RankPlace, checkpoint: Checkpoint | None
    ) -> None:
        self.arguments, self.place = arguments, place
        self.section = section = arguments.section
        self.pairs = Pairs(
            arguments.embeddings, arguments.captions, section, place.rank, place.world_size
        )
        self.steps_per_epoch = self.pairs.order.steps_per_epoch
        self.total = section.epochs * self.steps_per_epoch
        self.steps = range(self.total)
        fit.check(section, place, arguments.embedding_dim)
        tower = towers.build(section, arguments.embedding_dim)
        if section.activation_checkpointing:
            tower.transformer.set_grad_checkpointing(True)
        if checkpoint:
            _set_weights(tower, checkpoint)
        tower.train()
        self.exchange = Exchange()
        # Another pair's text is a negative, so a rank takes its whole share at once.
        share = section.batch_size // place.world_size
        self.engine = ZeroEngine(tower, section, place, share)
        if checkpoint:
            self.engine.restore(checkpoint.encoder("exp_avg"), checkpoint.step)

    def smaller(self) -> str:
        """Return what to set where the GPU's memory is full."""
        return "set text.activation_checkpointing: true, take more GPUs, or lower text.batch_size"

    def describe(self) -> str:
        """Return the data's size in words."""
        return f"{self.pairs.order.n} captioned images"

    def batches(self, first: int, last: int) -> Iterator[CaptionBatch]:
        """Iterate over this rank's pairs of steps `first` … `last` − 1, one batch per step."""
        return self.pairs.batches(first, last)

    def train_step(self, step: int, batches: Iterator[CaptionBatch], logged: bool) -> Record:
        """Take one optimizer step; all its numbers are means over ranks, `logged` or not."""
        section, place = self.section, self.place
        batch = next(batches)
        lr = section.lr * factor(step, self.total, section.warmup_steps, section.schedule)
        torch.manual_seed(draw(section.seed, step, place.rank))
        features, scale = self.engine(batch.token.to(place.device))
        image = batch.image.to(place.device)
        halves = section.precision == "bf16" and place.device.type == "cuda"
        loss, found = contrastive_loss(image, features, scale, self.exchange, halves=halves)
        mean_loss, mean_found = (
            value / place.world_size for value in all_sum([loss.item(), found.item()], place.device)
        )
        require_finite("the loss", mean_loss)
        self.engine.backward(loss)
        norm = self.engine.step(lr)
        assert norm is not None
        require_finite("a gradient", norm)
        return {
            "loss": mean_loss,
            "accuracy": mean_found,
            "scale": float(scale.detach()),
            "lr": lr,
            "grad_norm": norm,
        }

    def snapshot(self, step: int) -> Snapshot:
        """Copy the tower's weights and moments to main memory on rank 0."""
        encoder = self.engine.copy_state()
        return Snapshot(step=step, start=0, rows={}, buffers={}, encoder=encoder, image_size=0)

    def finish(self, checkpoint: Checkpoint) -> None:
        """Write text.safetensors and text.json."""
        write_tower(checkpoint, self.arguments)

    def close(self) -> None:
        """Give up DeepSpeed's engine."""
        self.engine.destroy()


def write_tower(checkpoint: Checkpoint, arguments: TextArguments) -> None:
    """Write text.safetensors and text.json from a checkpoint of the run of `arguments`."""
    section = arguments.section
    tower = towers.build(section, arguments.embedding_dim)
    _set_weights(tower, checkpoint)
    extra = {
        "steps": checkpoint.step,
        "encoder_sha256": arguments.encoder_sha256,
        # Sums over ranks round as their number says.
        "ranks": len(checkpoint.pieces),
        "section": section.model_dump(mode="json"),
        "made_from": arguments.made_from,
    }
    if changes := resume.accepted(arguments.state):
        extra["accepted_code"] = changes
    towers.save(tower, arguments.output, extra)


@torch.no_grad()
def _set_weights(tower: towers.TextTower, checkpoint: Checkpoint) -> None:
    weights = checkpoint.encoder("weight/")
    for name, weight in tower.named_parameters():
        weight.copy_(weights[f"weight/{name}"])
