"""Fine-tuning as the trainer runs it: steps on the train images, then the score on the test images.

The one loop is :mod:`mlcd.training.trainer`'s, as of the stages train and text. So checkpoints,
resume and metrics are theirs too, and a run that is killed ends with the same bytes.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar

import numpy as np
import torch
from torch.nn.functional import cross_entropy

from mlcd.config.finetune import Finetune
from mlcd.data.checkpoints import Checkpoint, Snapshot
from mlcd.data.decode import decode
from mlcd.data.preprocess import Preprocess
from mlcd.launch.process_group import RankPlace
from mlcd.models import slices, tunable
from mlcd.models.layers import lr_scales
from mlcd.models.trainable import Encoder
from mlcd.stages.evaluate import classes, measures
from mlcd.stages.evaluate.chosen import DIGITS
from mlcd.stages.evaluate.finetune.images import LabeledImages, Steps
from mlcd.stages.evaluate.finetune.mixing import mixed
from mlcd.training.arguments import RankArguments
from mlcd.training.crops import Augment
from mlcd.training.lr_schedule import factor
from mlcd.training.metrics import Record
from mlcd.training.read_ahead import ImageBatch, batches
from mlcd.training.shuffle import Order
from mlcd.training.tensors import cpu_copy, draw
from mlcd.training.trainer import require_finite
from mlcd.training.zero import ZeroEngine
from mlcd.utils.errors import UserError
from mlcd.utils.records import write_record

#: Images of a test batch, and of the windows that an epoch's order is shuffled in.
_TEST_BATCH, _WINDOW = 64, 8192
_STEP = 6


class FinetuneArguments(RankArguments):
    """The arguments of the one rank.

    `model`: random, trained or frozen. `encoder`: folder of the stage train, for the first two;
    `embed`: model, pretrained and image_size of the section embed, for the last. `metric`: the data
    set's measure. `micro_batch`: images at once. `max_pixels`: of an image that is decoded.
    `workers`: processes that read, 0 for none. `about`: what the result says beside its scores.
    `result`: the file to write.
    """

    stage: ClassVar[str] = "evaluate"

    section: Finetune
    model: str
    encoder: str | None
    embed: dict[str, Any]
    metric: str
    micro_batch: int
    max_pixels: int
    workers: int
    about: dict[str, Any]
    result: str

    def inputs(self) -> list[str]:
        """Return nothing: there are no other ranks to compare with."""
        return []


class FinetuneTask:
    """A :class:`mlcd.training.trainer.TrainingTask`: an encoder and a linear layer on classes."""

    unit = "images"
    advice = "lower evaluate.finetune_lr, or set evaluate.finetune_clip_norm"

    def __init__(
        self, arguments: FinetuneArguments, place: RankPlace, checkpoint: Checkpoint | None
    ) -> None:
        self.arguments, self.place = arguments, place
        self.section = section = arguments.section
        self.images = LabeledImages(arguments.state)
        self.result: dict[str, Any] = {}
        self.sides = classes.sides_of(self.images, self.result)
        self.rows = np.flatnonzero(self.sides.train)
        check_batch(section, len(self.rows), self.images.dataset)
        self.order = Order(
            np.array([len(self.rows)]),
            batch=section.batch_size,
            block=1,
            window=_WINDOW,
            seed=section.seed,
        )
        self.steps_per_epoch = self.order.steps_per_epoch
        self.total = section.finetune_epochs * self.steps_per_epoch
        self.steps = range(self.total)
        self.micro_batches = section.batch_size // arguments.micro_batch
        self.encoder, self.pixels = self._build()
        if checkpoint:
            _set_weights(self.encoder, checkpoint)
        device = place.device
        self._mean = 255 * torch.tensor(self.encoder.mean, device=device).view(1, 3, 1, 1)
        self._std = 255 * torch.tensor(self.encoder.std, device=device).view(1, 3, 1, 1)
        scales = lr_scales(self.encoder, section.layer_decay, "evaluate.finetune_layer_decay")
        self.encoder.train()
        self.engine = ZeroEngine(
            self.encoder, section, place, arguments.micro_batch, lr_scales=scales
        )
        if checkpoint:
            self.engine.restore(checkpoint.encoder("exp_avg"), checkpoint.step)

    def _build(self) -> tuple[Encoder, Preprocess]:
        """Return the encoder at its first weights, its classes on top, and what a test image is."""
        arguments, section = self.arguments, self.section
        if arguments.model == "frozen":
            loaded = tunable.load_frozen(**arguments.embed)
            encoder, pixels = tunable.of_frozen(loaded), loaded.pixels
        else:
            assert arguments.encoder is not None, "the driver has looked"
            encoder = tunable.rebuilt(
                arguments.encoder,
                section.finetune_drop_path,
                section.seed,
                trained=arguments.model == "trained",
            )
            pixels = Preprocess((encoder.image_size,) * 2, encoder.mean, encoder.std)
        return tunable.with_classes(encoder, self.sides.seen, section.seed), pixels

    def describe(self) -> str:
        """Return the data and their sizes in words."""
        return (
            f"fine-tuning {self.arguments.model} on {len(self.rows)} images of "
            f"{self.images.dataset}, {self.sides.seen} classes"
        )

    def smaller(self) -> str:
        """Return what to set where the GPU's memory is full."""
        size = self.arguments.micro_batch
        half = next((n for n in range(size // 2, 0, -1) if self.section.batch_size % n == 0), 1)
        return f"set --batch-size {half}, now {size}"

    def batches(self, first: int, last: int) -> Iterator[ImageBatch]:
        """Iterate over the micro-batches of steps `first` … `last` − 1."""
        section = self.section
        augment = Augment(
            self.encoder.image_size,
            section.finetune_crop_min_area,
            section.finetune_flip,
            section.seed,
        )
        label = self.sides.label[self.rows]
        steps = Steps(self.images, self.rows, label, self.order, augment, self.micro_batches)
        return batches(
            steps,
            first * self.micro_batches,
            last * self.micro_batches,
            workers=self.arguments.workers,
            pin=self.place.device.type == "cuda",
        )

    def train_step(self, step: int, batches: Iterator[ImageBatch], logged: bool) -> Record:
        """Take one step of AdamW over the micro-batches of step `step`."""
        section = self.section
        warmup = round(section.finetune_warmup_epochs * self.steps_per_epoch)
        lr = section.lr * factor(step, self.total, warmup, "cosine")
        loss, norm = 0.0, None
        for part in range(self.micro_batches):
            batch = next(batches)
            torch.manual_seed(draw(section.seed, _STEP, step, part))
            images, target = mixed(
                self._normalized(batch.images),
                batch.labels[:, 0].to(self.place.device),
                self.sides.seen,
                mixup=section.finetune_mixup,
                cutmix=section.finetune_cutmix,
                seed=(section.seed, step, part),
            )
            logits = self.engine(images).float()
            value = cross_entropy(logits, target, label_smoothing=section.finetune_label_smoothing)
            loss += value.item() / self.micro_batches
            require_finite("the loss", loss)
            self.engine.backward(value)
            norm = self.engine.step(lr)
        assert norm is not None
        require_finite("a gradient", norm)
        return {"loss": loss, "lr": lr, "grad_norm": norm}

    def snapshot(self, step: int) -> Snapshot:
        """Copy weights, moments and running statistics to main memory."""
        buffers = {name: cpu_copy(tensor) for name, tensor in _statistics(self.encoder).items()}
        encoder = self.engine.copy_state()
        return Snapshot(step, 0, {}, buffers, encoder, self.encoder.image_size)

    def finish(self, checkpoint: Checkpoint) -> None:
        """Score the test images by the last checkpoint, and write the result."""
        encoder, _ = self._build()
        _set_weights(encoder, checkpoint)
        logits = self._test_logits(encoder.eval().to(self.place.device))
        truth = torch.from_numpy(self.sides.label[self.sides.test])
        targets = torch.from_numpy(self.sides.label[self.sides.train])
        measure = measures.OF_CLASSES[self.arguments.metric]
        constant = classes.by_size(targets, len(truth), self.sides.seen)
        name = measures.finetune_name(self.arguments.metric)
        record = {
            **self.arguments.about,
            "made_from": self.arguments.made_from,
            "images": self.images.counts(),
            **self.result,
            "scores": {name: round(measure(logits, truth), DIGITS)},
            "chance": {name: round(measure(constant, truth), DIGITS)},
            "finetune": {
                "steps": checkpoint.step,
                "epochs": self.section.finetune_epochs,
                "train_images": len(self.rows),
                "weights": sum(weight.numel() for weight in encoder.parameters()),
            },
        }
        write_record(self.arguments.result, record)

    def close(self) -> None:
        """Give up DeepSpeed's engine."""
        self.engine.destroy()

    def _normalized(self, images: torch.Tensor) -> torch.Tensor:
        """Return uint8 images as the encoder takes them, on its device."""
        floats = images.to(self.place.device, non_blocking=True).float()
        return (floats - self._mean) / self._std

    def _test_logits(self, encoder: Encoder) -> torch.Tensor:
        """Return float32 [test images, classes], on the CPU."""
        rows = np.flatnonzero(self.sides.test)
        halves = self.section.precision == "bf16"
        device = self.place.device

        @torch.inference_mode()
        def compute(images: torch.Tensor) -> tuple[torch.Tensor]:
            with torch.autocast(device.type, torch.bfloat16, enabled=halves):
                return (encoder(images),)

        def pixels(row: int) -> np.ndarray:
            image = decode(self.images.read(row), max_pixels=self.arguments.max_pixels)
            return self.pixels(image)

        found = []
        with ThreadPoolExecutor(max(1, self.arguments.workers)) as pool:
            for start in range(0, len(rows), _TEST_BATCH):
                batch = np.stack(list(pool.map(pixels, rows[start : start + _TEST_BATCH].tolist())))
                images = torch.from_numpy(batch).permute(0, 3, 1, 2)
                (logits,) = slices.forward(compute, self._normalized(images))
                assert logits is not None
                found.append(logits.float().cpu())
        return torch.cat(found)


def check_batch(section: Finetune, images: int, dataset: str) -> None:
    """Raise :class:`UserError` if an epoch of so many train images has no whole step."""
    if images < section.batch_size:
        raise UserError(
            f"evaluate.finetune_batch_size: {section.batch_size} images per step, but {dataset} "
            f"has {images} labeled train images; lower it"
        )


def _statistics(encoder: Encoder) -> dict[str, torch.Tensor]:
    """Return the buffers that training changes: those that belong to the encoder's state."""
    kept = encoder.state_dict().keys()
    return {name: buffer for name, buffer in encoder.named_buffers() if name in kept}


@torch.no_grad()
def _set_weights(encoder: Encoder, checkpoint: Checkpoint) -> None:
    """Copy in weights and running statistics."""
    weights, statistics = checkpoint.encoder("weight/"), checkpoint.buffers(0, 1)
    for name, weight in encoder.named_parameters():
        weight.copy_(weights[f"weight/{name}"])
    for name, buffer in _statistics(encoder).items():
        buffer.copy_(statistics[name])
