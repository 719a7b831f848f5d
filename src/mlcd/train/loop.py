"""What every rank does: read, forward, backward, step, measure, checkpoint.

All random numbers are functions of (seed, step, rank) or (seed, epoch, picture), so that a resumed
run needs no saved state of any generator.
"""

from __future__ import annotations

import dataclasses
import gc
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mlcd.classifier import RowSparseAdamW, ShardedClassifier
from mlcd.config.train import Train
from mlcd.distributed import Place, all_sum, process_group
from mlcd.encoders import trainable
from mlcd.encoders.resize import fitted
from mlcd.errors import UserError
from mlcd.files import read_json
from mlcd.progress import LOGGER, progress
from mlcd.stores.centroids import Centroids
from mlcd.stores.checkpoints import Checkpoint, Snapshot, steps
from mlcd.train.centres import initial_rows
from mlcd.train.engine import EncoderEngine
from mlcd.train.final import running_statistics, set_weights, write_encoder
from mlcd.train.inputs import Index
from mlcd.train.pictures import Augment, Batch, Steps, batches
from mlcd.train.schedule import phases
from mlcd.training import ranks
from mlcd.training.metrics import Metrics
from mlcd.training.numbers import cpu_copy, draw, plain
from mlcd.training.order import Order

_STEP = 4
#: Mean cosine between features of different pictures above which they have all but collapsed.
_COLLAPSE = 0.95


@dataclasses.dataclass(frozen=True)
class Run:
    """One rank's arguments, plain values that travel to other machines.

    `state`: folder of index, checkpoints and metrics; `output`: folder of the final files.
    `micro_batch`: pictures a rank takes at once, 0 for its whole share of the batch;
    `high_res_micro_batch`: the same in the high-resolution phase. `memory_limit`: bytes that a
    block of the classifier's logits may take, None for its default.
    """

    section: dict[str, Any]
    identity: str
    centroids: str
    state: str
    output: str
    device: str
    micro_batch: int
    high_res_micro_batch: int
    memory_limit: int | None
    workers: int
    checkpoint_every: int
    keep: int


def train_rank(run: dict[str, Any]) -> dict[str, Any]:
    """Train to the end as one rank of the process group that the environment describes.

    `run`: the fields of :class:`Run`. Returns the number of steps and the last loss. Raises
    :class:`UserError`; the final files are written by rank 0.
    """
    arguments = Run(**run)
    with process_group(arguments.device, inputs=_inputs(arguments)) as place:
        return train(arguments, place)


def _inputs(run: Run) -> list[str]:
    """Return the files that every rank reads."""
    index = Path(run.state) / "index"
    own = [run.centroids, *map(str, sorted(index.iterdir()))]
    return own + read_json(index / "tars.json")


def train(run: Run, place: Place) -> dict[str, Any]:
    """As :func:`train_rank`, in a process group that is there already.

    Every phase starts from a checkpoint, the second from that at the end of the first: whether the
    run was killed in between makes no difference.
    """
    while True:
        training = _Training(run, place)
        result = training.run()
        if training.phase.last == training.total:
            return result
        # The first phase's weights and moments go before the second's come.
        training.engine.destroy()
        del training
        gc.collect()


class _Training:
    """The parts of a phase of a run on one rank, from the newest checkpoint on."""

    def __init__(self, run: Run, place: Place) -> None:
        self.run_, self.place = run, place
        self.section = section = Train(**run.section)
        self.state = Path(run.state)
        self.index = Index(self.state / "index")
        self.order = Order(
            self.index.counts,
            batch=section.batch_size,
            block=section.shuffle_block,
            window=section.shuffle_window,
            seed=section.seed,
        )
        found = ranks.agreed_checkpoint(run, place)
        self.step = found.step if found else 0
        parts = phases(section, self.order.steps_per_epoch)
        self.total = parts[-1].last
        self.phase = next((part for part in parts if self.step < part.last), parts[-1])
        share = section.batch_size // place.world_size
        high_res = self.phase.first > 0
        self.micro_batch = (run.high_res_micro_batch if high_res else run.micro_batch) or share
        self.micro_batches = share // self.micro_batch
        self._build(found)
        self.writer = ranks.checkpoint_writer(run, place, self.step)

    def _build(self, found: Checkpoint | None) -> None:
        section, place = self.section, self.place
        encoder = trainable.build(
            section.model, section.embedding_dim, self.phase.image_size, section.drop_path,
            section.seed,
        )  # fmt: skip
        centroids = Centroids(self.run_.centroids)
        self.classifier = ShardedClassifier(
            centroids.K,
            section.embedding_dim,
            kind=section.loss,
            scale=section.scale,
            margin=section.margin,
            margin_type=section.margin_type,
            negative_ratio=section.negative_ratio,
            seed=section.seed,
            memory_limit=self.run_.memory_limit,
            compute_dtype=torch.float32 if section.precision == "fp32" else None,
            device=place.device,
        )
        start, stop = self.classifier.start, self.classifier.stop
        self.optimizer = RowSparseAdamW(
            self.classifier,
            section.classifier_lr,
            (section.beta1, section.beta2),
            weight_decay=section.classifier_weight_decay,
        )
        with torch.no_grad():
            if found is not None:
                statistics = found.buffers(place.rank, place.world_size)
                set_weights(encoder, found.encoder("weight/"), statistics)
                rows = found.rows(start, stop)
                self.classifier.weight.copy_(rows.pop("weight"))
                self.optimizer.load_state_tensors(rows)
            elif section.center_init == "centroids":
                self.classifier.weight.copy_(
                    initial_rows(
                        centroids, section.embedding_dim, start, stop, section.seed, place.rank
                    )
                )
        encoder.train()
        shapes = {name: weight.shape for name, weight in encoder.named_parameters()}
        self.engine = EncoderEngine(encoder, section, place, self.micro_batch)
        if found is not None:
            moments = {
                # Bilinear: the second moment stays positive.
                key: fitted(key, value, shapes[key.split("/", 1)[1]], "bilinear")
                for key, value in found.encoder("exp_avg").items()
            }
            self.engine.restore(moments, found.step)
            LOGGER.info("going on from step %d of %d", found.step, self.total)

    def run(self) -> dict[str, Any]:
        section, place = self.section, self.place
        metrics = None
        if place.is_main:
            metrics = Metrics(
                self.state / "metrics.jsonl", Path(self.run_.output) / "tensorboard", self.step,
                "train",
            )  # fmt: skip
            LOGGER.info(
                "%d pictures, %d classes, %d steps of %d pictures of %d pixels on %d ranks (%s), "
                "%d at once", self.order.n, self.classifier.num_classes,
                self.phase.last - self.phase.first, section.batch_size, self.phase.image_size,
                place.world_size, place.device.type, self.micro_batch,
            )  # fmt: skip
        data = self._data()
        clock, waited, pictures, loss = time.monotonic(), 0.0, 0, math.nan
        for step in progress(range(self.step, self.phase.last), label="train", unit="step"):
            record, wait = self._step(step, data)
            loss = record["loss"]
            waited += wait
            pictures += section.batch_size
            self.step = step + 1
            last = self.step == self.phase.last
            if self.step % section.log_every == 0 or last:
                elapsed = time.monotonic() - clock
                (waited,) = all_sum([waited], place.device)
                if metrics:
                    record["images_per_s"] = round(pictures / elapsed, 2)
                    record["data_wait_share"] = round(waited / elapsed / place.world_size, 4)
                    metrics.write(record)
                    _warn_of_collapse(record)
                clock, waited, pictures = time.monotonic(), 0.0, 0
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
        if self.step == self.total:
            self._finish()
        return {"steps": self.step, "loss": None if math.isnan(loss) else loss}

    def _data(self) -> Iterator[Batch]:
        section, place = self.section, self.place
        dataset = Steps(
            self.index,
            self.order,
            Augment(self.phase.image_size, section.crop_min_area, section.flip, section.seed),
            rank=place.rank,
            world_size=place.world_size,
            micro_batches=self.micro_batches,
        )
        return batches(
            dataset,
            self.step * self.micro_batches,
            self.phase.last * self.micro_batches,
            workers=self.run_.workers,
            pin=place.device.type == "cuda",
        )

    def _step(self, step: int, data: Iterator[Batch]) -> tuple[dict[str, Any], float]:
        """Take one optimiser step; return its record and the seconds spent waiting for data."""
        section, place = self.section, self.place
        rate = self.phase.factor(step, section)
        lr, classifier_lr = self.phase.lr * rate, self.phase.classifier_lr * rate
        logged = (step + 1) % section.log_every == 0 or step + 1 == self.phase.last
        waited, loss, norm = 0.0, 0.0, None
        sums = dict.fromkeys(
            ("positive_term", "negative_term", "positive_similarity", "negative_similarity",
             "feature_cosine"), 0.0)  # fmt: skip
        for part in range(self.micro_batches):
            before = time.monotonic()
            batch = next(data)
            waited += time.monotonic() - before
            torch.manual_seed(draw(section.seed, _STEP, step, part, place.rank))
            embedding = self.engine.forward(batch.images)
            value = self.classifier(embedding, batch.labels.to(place.device), step)
            loss += value.item() / self.micro_batches
            if not math.isfinite(loss):
                self._stop(step, "the loss")
            if logged:
                for name, statistic in self.classifier.statistics.items():
                    sums[name] += float(statistic) / self.micro_batches
                sums["feature_cosine"] += feature_cosine(embedding) / self.micro_batches
            self.engine.backward(value)
            norm = self.engine.step(lr)
        classifier_norm = self._classifier_step(classifier_lr)
        assert norm is not None
        if not (math.isfinite(norm) and math.isfinite(classifier_norm)) or norm < 0:
            self._stop(step, "a gradient")
        if logged:
            (cosine,) = all_sum([sums["feature_cosine"]], place.device)
            sums["feature_cosine"] = cosine / place.world_size
        record = {
            "step": step + 1,
            "epoch": step // self.order.steps_per_epoch,
            "loss": loss,
            "positive_term": sums["positive_term"],
            "negative_term": sums["negative_term"],
            "lr": lr,
            "classifier_lr": classifier_lr,
            "grad_norm": norm,
            "classifier_grad_norm": classifier_norm,
            "positive_similarity": sums["positive_similarity"],
            "negative_similarity": sums["negative_similarity"],
            "feature_cosine": sums["feature_cosine"],
        }
        return {name: plain(number) for name, number in record.items()}, waited

    def _classifier_step(self, lr: float) -> float:
        """Average the centres' gradient over micro-batches, clip it, step; return its norm."""
        clip = self.section.clip_norm
        norm = self.optimizer.clip(clip) if clip else self.optimizer.grad_norm()
        self.optimizer.step(lr)
        self.optimizer.zero_grad()
        return float(norm)

    def _stop(self, step: int, what: str) -> None:
        """Raise :class:`UserError`; every rank does, because the loss is the same on all."""
        self.writer.wait()
        # The last checkpoint is whole when all ranks have written their part of it.
        dist.barrier()
        saved = [path.name for path in steps(self.state / "checkpoints")]
        good = f"the last good checkpoint is {saved[-1]}" if saved else "no checkpoint was written"
        raise UserError(
            f"train: {what} is not finite at step {step + 1}; {good} in "
            f"{self.state / 'checkpoints'}; lower train.lr or train.scale, or set train.clip_norm"
        )

    def _snapshot(self) -> Snapshot:
        """Copy to main memory all that the checkpoint holds; the whole stop that it costs."""
        rows = {"weight": self.classifier.weight.detach(), **self.optimizer.state_tensors()}
        return Snapshot(
            self.step,
            self.classifier.start,
            {name: cpu_copy(tensor) for name, tensor in rows.items()},
            {
                name: cpu_copy(tensor)
                for name, tensor in running_statistics(self.engine.encoder).items()
            },
            ranks.whole_state(self.engine, self.place),
            self.phase.image_size,
        )

    def _finish(self) -> None:
        """Rank 0 writes the final files from the last checkpoint: equal however it was reached."""
        if self.place.is_main:
            last = ranks.last_checkpoint(self.run_, self.total)
            write_encoder(last, self.section, Path(self.run_.output))


def _warn_of_collapse(record: dict[str, Any]) -> None:
    if (record["feature_cosine"] or 0) > _COLLAPSE:
        LOGGER.warning(
            "step %d: features of different pictures have a mean cosine of %.3f: the encoder "
            "collapses; lower train.lr or train.scale",
            record["step"],
            record["feature_cosine"],
        )


@torch.no_grad()
def feature_cosine(embedding: torch.Tensor) -> float:
    """Return the mean cosine between different rows of [B, d]; 1 means that all are alike."""
    rows = torch.nn.functional.normalize(embedding.detach().double())
    n = len(rows)
    if n < 2:
        return 0.0
    return float((rows.sum(0).square().sum() - n) / (n * (n - 1)))
