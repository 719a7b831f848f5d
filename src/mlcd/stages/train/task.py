"""The training of the encoder as one rank does it: forward, both losses' steps, what is saved."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from mlcd.classifier import RowSparseAdamW, ShardedClassifier
from mlcd.data.centroids import Centroids
from mlcd.data.checkpoints import Checkpoint, Snapshot, prune
from mlcd.launch import live
from mlcd.launch.process_group import RankPlace
from mlcd.models import initial, layers, trainable
from mlcd.models.region_encoder import map_shape, with_regions
from mlcd.models.resize_weights import fitted
from mlcd.stages.train import fit
from mlcd.stages.train.arguments import TrainArguments
from mlcd.stages.train.engine import EncoderEngine
from mlcd.stages.train.final import running_statistics, set_weights, write_encoder
from mlcd.stages.train.images import Steps
from mlcd.stages.train.initial_centers import initial_rows
from mlcd.stages.train.inputs import Index
from mlcd.stages.train.ocr_head import NAME as OCR
from mlcd.stages.train.ocr_head import OcrHead
from mlcd.stages.train.phases import Phase, phases
from mlcd.stages.train.region_rows import RegionRows
from mlcd.training import trainer
from mlcd.training.collectives import all_sum
from mlcd.training.crops import Augment
from mlcd.training.memory import Job
from mlcd.training.metrics import Record
from mlcd.training.read_ahead import ImageBatch, batches
from mlcd.training.shuffle import Order
from mlcd.training.tensors import cpu_copy, draw
from mlcd.training.trainer import require_finite
from mlcd.utils.logging import LOGGER

_STEP = 4
#: Mean cosine between features of different images above which they have all but collapsed.
_COLLAPSE = 0.95


def train_rank(arguments: dict[str, Any]) -> dict[str, Any]:
    """Train to the end as one rank of the process group that the environment describes.

    `arguments`: JSON values of :class:`TrainArguments`. Returns ``{"steps": …}``. Raises
    :class:`UserError`; the final files are written by rank 0.
    """
    given = TrainArguments.model_validate(arguments)
    with live.scoring(given.live, given.state):
        done = trainer.train_rank(given, EncoderTask)
    if given.live is not None and os.environ.get("RANK", "0") == "0":
        # Those that were kept for their scores.
        prune(given.state / "checkpoints", given.keep)
    return done


class EncoderTask:
    """A :class:`mlcd.training.trainer.TrainingTask`: encoder and centers in one phase of the run.

    A phase has one image size. The first step that `checkpoint` lacks says which phase it is; a
    checkpoint of the phase before is resampled to this one's size.
    """

    unit = "images"
    advice = "lower train.lr or train.scale, or set train.clip_norm"

    def __init__(
        self, arguments: TrainArguments, place: RankPlace, checkpoint: Checkpoint | None
    ) -> None:
        self.arguments, self.place = arguments, place
        self.section = section = arguments.section
        self.index = Index(arguments.index)
        self.order = Order(
            self.index.counts,
            batch=section.batch_size,
            block=section.shuffle_block,
            window=section.shuffle_window,
            seed=section.seed,
            by_place=section.shares_by_place,
        )
        self.steps_per_epoch = self.order.steps_per_epoch
        step = checkpoint.step if checkpoint else 0
        parts = phases(section, self.steps_per_epoch)
        self.total = parts[-1].last
        self.phase = next((part for part in parts if step < part.last), parts[-1])
        self.steps = range(self.phase.first, self.phase.last)
        self.micro_batch = self._fitting(parts[parts.index(self.phase) :])[0]
        self.micro_batches = section.batch_size // place.world_size // self.micro_batch
        encoder = self._build_encoder(checkpoint)
        #: Rows and columns of the encoder's map, where regions of images are trained.
        self.places = map_shape(encoder)[1:] if section.regions == "boxes" else None
        self._build_classifier(checkpoint)
        #: The second head, where the run has one.
        self.ocr = (
            OcrHead(arguments, self.index.words, place, checkpoint) if self.index.words else None
        )
        encoder.train()
        shapes = {name: weight.shape for name, weight in encoder.named_parameters()}
        self.engine = EncoderEngine(encoder, section, place, self.micro_batch)
        if checkpoint:
            moments = {
                # Bilinear: the second moment stays positive.
                key: fitted(key, value, shapes[key.split("/", 1)[1]], "bilinear")
                for key, value in checkpoint.encoder("exp_avg").items()
            }
            self.engine.restore(moments, checkpoint.step)

    def _build_encoder(self, checkpoint: Checkpoint | None) -> trainable.Encoder:
        """Build the encoder: as it was saved, or at its first weights."""
        section, place = self.section, self.place
        encoder = trainable.build(
            section.model, section.embedding_dim, self.phase.image_size, section.drop_path,
            section.seed,
        )  # fmt: skip
        if section.regions:
            encoder = with_regions(encoder, section.seed)
        if checkpoint:
            statistics = checkpoint.buffers(place.rank, place.world_size)
            set_weights(encoder, checkpoint.encoder("weight/"), statistics)
        elif section.initial:
            initial.apply(encoder, self.arguments.state)
        initial.normalize(encoder, self.arguments.provenance().get("initial", {}))
        layers.freeze(encoder, section.freeze_layers)
        return encoder

    def _fitting(self, parts: list[Phase]) -> list[int]:
        """Return the micro-batch of each of `parts`; collective.

        A later phase that does not fit is refused now, not after the first.
        """
        arguments, found = self.arguments, []
        labels = self.index.label.shape[1]
        for part in parts:
            wanted = arguments.high_res_micro_batch if part.first else arguments.micro_batch
            asked = partial(self._job, part.image_size, labels)
            found.append(fit.on_ranks(wanted, self.section, self.place, arguments.state, asked))
        return found

    def _job(self, side: int, labels: int) -> Job:
        """Return what the memory model asks of images of `side` pixels."""
        return fit.job(
            self.section,
            ranks=self.place.world_size,
            side=side,
            # Both heads as one: their rows lie side by side.
            classes=self.arguments.num_classes + self.arguments.num_words,
            labels=labels,
            memory_limit=self.arguments.memory_limit,
        )

    @torch.no_grad()
    def _build_classifier(self, checkpoint: Checkpoint | None) -> None:
        """Make this rank's centers and their optimizer."""
        section, place = self.section, self.place
        self.classifier = ShardedClassifier(
            self.arguments.num_classes,
            section.embedding_dim,
            kind=section.loss,
            scale=section.scale,
            margin=section.margin,
            margin_type=section.margin_type,
            negative_ratio=section.negative_ratio,
            seed=section.seed,
            memory_limit=self.arguments.memory_limit,
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
        if checkpoint:
            rows = checkpoint.rows(start, stop)
            self.classifier.weight.copy_(rows.pop("weight"))
            self.optimizer.load_state_tensors(rows)
        elif section.center_init == "centroids":
            assert self.arguments.centroids is not None, "the driver has looked"
            centroids = Centroids(self.arguments.centroids)
            self.classifier.weight.copy_(
                initial_rows(
                    centroids, section.embedding_dim, start, stop, section.seed, place.rank
                )
            )

    def smaller(self) -> str:
        """Return what to set where the GPU's memory is full."""
        share = self.micro_batch * self.micro_batches
        unit = fit.unit(self.section)
        half = next((n for n in range(self.micro_batch // 2, 0, -1)
                     if share % n == n % unit == 0), 0)  # fmt: skip
        if not half:
            return (
                "set train.activation_checkpointing: true, a higher train.zero_stage, or more GPUs"
            )
        option = "high-res-micro-batch" if self.phase.first else "micro-batch"
        return (
            f"set --{option} {half} (resource {option.replace('-', '_')}), now {self.micro_batch}"
        )

    def describe(self) -> str:
        """Return the data and their sizes in words."""
        return (
            f"{self.order.n} images of {self.phase.image_size} pixels, "
            f"{self.classifier.num_classes} classes, {self.micro_batch} images at once"
        )

    def batches(self, first: int, last: int) -> Iterator[ImageBatch]:
        """Iterate over this rank's micro-batches of steps `first` … `last` − 1."""
        section, place = self.section, self.place
        augment = Augment(
            self.phase.image_size,
            section.crop_min_area,
            section.flip,
            section.seed,
            fast=section.crop_pixels == "fast",
        )
        dataset = Steps(
            self.index,
            self.order,
            augment,
            rank=place.rank,
            world_size=place.world_size,
            micro_batches=self.micro_batches,
            mosaic=section.mosaic,
            regions=self._regions(augment),
        )
        return batches(
            dataset,
            first * self.micro_batches,
            last * self.micro_batches,
            workers=self.arguments.workers,
            pin=place.device.type == "cuda",
        )

    def _regions(self, augment: Augment) -> RegionRows | None:
        """Return what chooses the regions of images; None where none of theirs are trained."""
        if self.section.regions != "boxes":
            return None
        assert self.index.regions is not None and self.places is not None, "the driver has looked"
        count = self.section.regions_per_image
        return RegionRows(self.index.regions, self.index.label, augment, count, self.places)

    def train_step(self, step: int, batches: Iterator[ImageBatch], logged: bool) -> Record:
        """Take one step of both optimizers over the micro-batches of step `step`.

        Returns the numbers of the step; similarities and terms are 0 unless `logged`.
        """
        section = self.section
        rate = self.phase.factor(step, section)
        lr, classifier_lr = self.phase.lr * rate, self.phase.classifier_lr * rate
        loss, norm, sums = self._accumulate(step, batches, lr, logged)
        classifier_norm = self._classifier_step(classifier_lr)
        second = self.ocr.step(classifier_lr) if self.ocr else {}
        require_finite("a gradient", norm, classifier_norm, *second.values())
        if logged:
            (cosine,) = all_sum([sums["feature_cosine"]], self.place.device)
            sums["feature_cosine"] = cosine / self.place.world_size
            _warn_of_collapse(step, sums["feature_cosine"])
        return {
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
            **second,
        }

    def _accumulate(
        self, step: int, batches: Iterator[ImageBatch], lr: float, logged: bool
    ) -> tuple[float, float, dict[str, float]]:
        """Run the step's micro-batches and update the encoder.

        Returns loss, the encoder's gradient norm and, if `logged`, the classifier's statistics and
        this rank's feature cosine, all as means over micro-batches.
        """
        loss, norm = 0.0, None
        sums = dict.fromkeys(
            ("positive_term", "negative_term", "positive_similarity", "negative_similarity",
             "feature_cosine"), 0.0)  # fmt: skip
        for part in range(self.micro_batches):
            batch = next(batches)
            torch.manual_seed(draw(self.section.seed, _STEP, step, part, self.place.rank))
            embedding = self.engine.forward(batch.images, batch.boxes)
            # Regions of an image have no words, and are none of its different images.
            images = slice(len(batch.images) if self.section.regions == "boxes" else None)
            # Labels are checked where they are: on a GPU it would wait for that.
            labels, words = self.ocr.split(batch.labels) if self.ocr else (batch.labels, None)
            value = self.classifier(embedding, labels, step)
            loss += value.item() / self.micro_batches
            if self.ocr and words is not None:
                share = 1 / self.micro_batches
                value = self.ocr.add(value, embedding[images], words[images], step, share)
            require_finite("the loss", loss, self.ocr.loss if self.ocr else 0.0)
            if logged:
                for name, statistic in self.classifier.statistics.items():
                    sums[name] += float(statistic) / self.micro_batches
                sums["feature_cosine"] += feature_cosine(embedding[images]) / self.micro_batches
            self.engine.backward(value)
            norm = self.engine.step(lr)
        assert norm is not None
        return loss, norm, sums

    def _classifier_step(self, lr: float) -> float:
        """Average the centers' gradient over micro-batches, clip it, step; return its norm."""
        clip = self.section.clip_norm
        norm = self.optimizer.clip(clip) if clip else self.optimizer.grad_norm()
        self.optimizer.step(lr)
        self.optimizer.zero_grad()
        return float(norm)

    def snapshot(self, step: int) -> Snapshot:
        """Copy to main memory this rank's centers and buffers, and the encoder on rank 0."""
        rows = {"weight": self.classifier.weight.detach(), **self.optimizer.state_tensors()}
        buffers = running_statistics(self.engine.encoder)
        return Snapshot(
            step=step,
            start=self.classifier.start,
            rows={name: cpu_copy(tensor) for name, tensor in rows.items()},
            buffers={name: cpu_copy(tensor) for name, tensor in buffers.items()},
            encoder=self.engine.copy_state(),
            image_size=self.phase.image_size,
            heads={OCR: self.ocr.rows()} if self.ocr else {},
        )

    def finish(self, checkpoint: Checkpoint) -> None:
        """Write the final files."""
        made_from = self.arguments.made_from
        write_encoder(checkpoint, self.section, self.arguments.output, made_from)

    def close(self) -> None:
        """Give up DeepSpeed's engine."""
        self.engine.destroy()


def _warn_of_collapse(step: int, cosine: float) -> None:
    if cosine > _COLLAPSE:
        LOGGER.warning(
            "step %d: features of different images have a mean cosine of %.3f: the encoder "
            "collapses; lower train.lr or train.scale",
            step + 1,
            cosine,
        )


@torch.no_grad()
def feature_cosine(embedding: torch.Tensor) -> float:
    """Return the mean cosine between different rows of [B, d]; 1 means that all are alike."""
    rows = torch.nn.functional.normalize(embedding.detach().double())
    n = len(rows)
    if n < 2:
        return 0.0
    return float((rows.sum(0).square().sum() - n) / (n * (n - 1)))
