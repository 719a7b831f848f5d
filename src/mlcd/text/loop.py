"""What every rank does: read pairs, forward, gather, backward, step, checkpoint."""

from __future__ import annotations

import dataclasses
import math
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mlcd.classifier.exchange import Exchange
from mlcd.config.text import Text
from mlcd.distributed import Place, all_sum, process_group
from mlcd.encoders import text as towers
from mlcd.errors import UserError
from mlcd.progress import LOGGER, progress
from mlcd.stores.checkpoints import Checkpoint, Snapshot
from mlcd.text.contrastive import contrastive_loss
from mlcd.text.pairs import Batch, Pairs
from mlcd.training import ranks
from mlcd.training.metrics import Metrics
from mlcd.training.numbers import draw, plain
from mlcd.training.schedule import factor
from mlcd.training.zero import ZeroEngine


@dataclasses.dataclass(frozen=True)
class Run:
    """One rank's arguments, plain values that travel to other machines.

    `embeddings` and `captions`: files of the same chunks; `encoder_sha256`: of the frozen encoder's
    weights; `embedding_dim`: d. `state`: folder of checkpoints and metrics; `output`: of the final
    files.
    """

    section: dict[str, Any]
    identity: str
    embeddings: list[str]
    captions: list[str]
    encoder_sha256: str
    embedding_dim: int
    state: str
    output: str
    device: str
    checkpoint_every: int
    keep: int


def text_rank(run: dict[str, Any]) -> dict[str, Any]:
    """Train to the end as one rank of the process group that the environment describes.

    `run`: the fields of :class:`Run`. Returns the number of steps. Raises :class:`UserError`; the
    final files are written by rank 0.
    """
    arguments = Run(**run)
    inputs = [*arguments.embeddings, *arguments.captions]
    with process_group(arguments.device, inputs=inputs) as place:
        return train(arguments, place)


def train(run: Run, place: Place) -> dict[str, Any]:
    """As :func:`text_rank`, in a process group that is there already."""
    return _Training(run, place).run()


class _Training:
    """The parts of a run on one rank, from the newest checkpoint on."""

    def __init__(self, run: Run, place: Place) -> None:
        self.run_, self.place = run, place
        self.section = section = Text(**run.section)
        self.state = Path(run.state)
        self.pairs = Pairs(run.embeddings, run.captions, section, place.rank, place.world_size)
        self.total = section.epochs * self.pairs.order.steps_per_epoch
        found = ranks.agreed_checkpoint(run, place)
        self.step = found.step if found else 0
        tower = towers.build(section, run.embedding_dim)
        if section.activation_checkpointing:
            tower.transformer.set_grad_checkpointing(True)
        if found:
            _set_weights(tower, found)
        tower.train()
        self.exchange = Exchange()
        # Another pair's text is a negative, so a rank takes its whole share at once.
        share = section.batch_size // place.world_size
        self.engine = ZeroEngine(tower, section, place, share)
        if found:
            self.engine.restore(found.encoder("exp_avg"), found.step)
            LOGGER.info("going on from step %d of %d", found.step, self.total)
        self.writer = ranks.checkpoint_writer(run, place, self.step)

    def run(self) -> dict[str, Any]:
        section, place = self.section, self.place
        metrics = None
        if place.is_main:
            board = Path(self.run_.output) / "tensorboard"
            metrics = Metrics(self.state / "metrics.jsonl", board, self.step, "text")
            LOGGER.info(
                "%d captioned pictures, %d steps of %d pairs on %d ranks (%s)", self.pairs.order.n,
                self.total, section.batch_size, place.world_size, place.device.type,
            )  # fmt: skip
        data = self.pairs.batches(self.step, self.total)
        clock, waited, pairs = time.monotonic(), 0.0, 0
        for step in progress(range(self.step, self.total), label="text", unit="step"):
            before = time.monotonic()
            batch = next(data)
            waited += time.monotonic() - before
            record = self._step(step, batch)
            pairs += section.batch_size
            self.step = step + 1
            last = self.step == self.total
            if metrics and (self.step % section.log_every == 0 or last):
                elapsed = time.monotonic() - clock
                record["pairs_per_s"] = round(pairs / elapsed, 2)
                record["data_wait_share"] = round(waited / elapsed, 4)
                metrics.write(record)
                clock, waited, pairs = time.monotonic(), 0.0, 0
            stop = ranks.told_to_stop(place)
            if stop or last or self.step % self.run_.checkpoint_every == 0:
                self.writer.save(self._snapshot())
            if stop and not last:
                ranks.make_room(self.writer, self.step)
        self.writer.wait()
        # Every rank's piece is whole before rank 0 says that training is done.
        dist.barrier()
        if metrics:
            metrics.close()
            write_tower(ranks.last_checkpoint(self.run_, self.total), self.run_)
        return {"steps": self.step}

    def _step(self, step: int, batch: Batch) -> dict[str, Any]:
        """Take one optimiser step; return its record, the same numbers on every rank."""
        section, place = self.section, self.place
        lr = section.lr * factor(step, self.total, section.warmup_steps, section.schedule)
        torch.manual_seed(draw(section.seed, step, place.rank))
        features, scale = self.engine(batch.token.to(place.device))
        image = batch.image.to(place.device)
        loss, found = contrastive_loss(image, features, scale, self.exchange)
        mean_loss, mean_found = (
            value / place.world_size for value in all_sum([loss.item(), found.item()], place.device)
        )
        if not math.isfinite(mean_loss):
            self._stop(step, "the loss")
        self.engine.backward(loss)
        norm = self.engine.step(lr)
        assert norm is not None
        if not math.isfinite(norm) or norm < 0:
            self._stop(step, "a gradient")
        record = {
            "step": step + 1,
            "epoch": step // self.pairs.order.steps_per_epoch,
            "loss": mean_loss,
            "accuracy": mean_found,
            "scale": float(scale.detach()),
            "lr": lr,
            "grad_norm": norm,
        }
        return {name: plain(number) for name, number in record.items()}

    def _stop(self, step: int, what: str) -> None:
        """Raise :class:`UserError`; every rank does, because the numbers are the same on all."""
        self.writer.wait()
        raise UserError(
            f"text: {what} is not finite at step {step + 1}; lower text.lr, or set text.clip_norm"
        )

    def _snapshot(self) -> Snapshot:
        """Copy to main memory all that the checkpoint holds."""
        return Snapshot(self.step, 0, {}, {}, ranks.whole_state(self.engine, self.place), 0)


def write_tower(checkpoint: Checkpoint, run: Run) -> None:
    """Write text.safetensors and text.json from a checkpoint of `run`."""
    section = Text(**run.section)
    tower = towers.build(section, run.embedding_dim)
    _set_weights(tower, checkpoint)
    extra = {
        "steps": checkpoint.step,
        "encoder_sha256": run.encoder_sha256,
        "section": section.model_dump(mode="json"),
    }
    towers.save(tower, run.output, extra)


@torch.no_grad()
def _set_weights(tower: towers.TextTower, checkpoint: Checkpoint) -> None:
    weights = checkpoint.encoder("weight/")
    for name, weight in tower.named_parameters():
        weight.copy_(weights[f"weight/{name}"])
