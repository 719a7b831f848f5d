"""`mlcd train --plan`: whether a training fits, and what it would take, in words.

All is arithmetic on shapes: memory by :mod:`mlcd.training.memory`, rates by stated assumptions.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import NamedTuple

from mlcd.commands.plan import gpus
from mlcd.config import Ocr, load
from mlcd.config.train import Train
from mlcd.launch import options
from mlcd.models.footprint import Footprint
from mlcd.stages.train import fit, micro_batches
from mlcd.stages.train.phases import phases
from mlcd.training.memory import CONTEXT, MARGIN, Job, Need, need, network_bytes, usable
from mlcd.utils.errors import UserError
from mlcd.utils.units import decimal_size, parse_size

#: Images that a core decodes, crops and resizes in a second: assumed.
DECODED = 150
#: Images at once below which a GPU does not reach its rate.
_FEW = 16


@dataclasses.dataclass(frozen=True)
class Part:
    """One phase of a run: `job`, its `footprint`, `micro_batch` and `need`, `images` trained in it.

    `flop`: operations to train an image. `rate`: images per second of all GPUs.
    """

    job: Job
    footprint: Footprint
    micro_batch: int
    need: Need
    images: int
    flop: float
    rate: float

    @property
    def seconds(self) -> float:
        """From start to end."""
        return self.images / self.rate


def run(arguments: argparse.Namespace, section: Train) -> None:
    """Print the plan of the training that the options ask for. Raises :class:`UserError`."""
    resources = options.resources(arguments)
    memory, flops, source = gpus.asked(arguments)
    n, classes, labels, words = _data(arguments, section)
    if n < section.batch_size:
        raise UserError(f"train.batch_size: {section.batch_size} images per step of {n}; lower it")
    # Both heads as one: their rows lie side by side.
    heads = (n, classes + words.classes, labels + words.top)
    parts = plan(arguments, section, resources.ranks, memory, flops, heads)
    first = parts[0]
    lines = [
        ("images", f"{n:,}, {section.batch_size:,} per step"),
        ("encoder", f"{section.model}: {first.footprint.weights / 1e6:,.1f} M weights, "
                    f"{section.precision}, ZeRO stage {section.zero_stage}"),
        ("classes", f"{classes:,} of {section.embedding_dim} dimensions, {labels} per image"),
        *words.lines(),
        ("GPUs", f"{resources.ranks} of {decimal_size(memory)}, of which "
                 f"{decimal_size(usable(memory))} are planned for"),
        ("rate", f"{flops:.3g} FLOP/s per GPU ({source})"),
    ]  # fmt: skip
    for part in parts:
        lines += _phase(part, resources.threads, section.activation_checkpointing)
    seconds = sum(part.seconds for part in parts)
    lines += [
        ("expected time", f"{_time(seconds)}, {seconds * resources.ranks / 3600:,.0f} GPU hours, "
                          "if data and network keep up"),
        ("assumed", f"{decimal_size(CONTEXT)} of CUDA's context per GPU, {MARGIN:.0%} of its "
                    f"memory lost to fragments, {DECODED} images/s per decoding core"),
    ]  # fmt: skip
    for name, value in lines:
        print(f"{name:<18}{value}")


def plan(arguments: argparse.Namespace, section: Train, ranks: int, memory: int, flops: float,
         data: tuple[int, int, int]) -> list[Part]:  # fmt: skip
    """Return the phases of a training on `ranks` GPUs of `memory` bytes and `flops` FLOP/s each.

    data: images, classes and labels per image, of both heads together. Raises :class:`UserError` if
    one does not fit.
    """
    n, classes, labels = data
    limit = parse_size(arguments.memory_limit) if arguments.memory_limit else None
    wanted = micro_batches(arguments, section, ranks)
    parts = []
    for phase, asked in zip(phases(section, n // section.batch_size), wanted, strict=False):
        job = fit.job(
            section, ranks=ranks, side=phase.image_size, classes=classes, labels=labels,
            memory_limit=limit,
        )  # fmt: skip
        found = fit.footprint_of(section, phase.image_size)
        size = fit.chosen(section, job, memory) if asked == "auto" else asked or job.share
        taken = need(job, found, size)
        if taken.total > usable(memory):
            raise UserError(fit.refusal(section, job, memory, size))
        # Backward is twice forward, and checkpointing goes forward again. The classifier's four
        # products are with the sampled classes.
        flop = found.flop * (4 if section.activation_checkpointing else 3)
        flop += 8 * job.sampled * job.dim
        images = (phase.last - phase.first) * section.batch_size
        parts.append(Part(job, found, size, taken, images, flop, ranks * flops / flop))
    return parts


class Words(NamedTuple):
    """The second head: its classes, and those of an image at most; nothing without one."""

    classes: int = 0
    top: int = 0

    def lines(self) -> list[tuple[str, str]]:
        """Return what is printed of it."""
        if not self.classes:
            return []
        return [("words", f"{self.classes:,} at most, {self.top} per image")]


def _data(arguments: argparse.Namespace, section: Train) -> tuple[int, int, int, Words]:
    """Return images, classes, labels per image, and words. Raises :class:`UserError`."""
    from mlcd.data.centroids import Centroids
    from mlcd.data.embeddings import open_all

    text = arguments.config
    config = load(text) if text and not text.lstrip().startswith("{") else None
    n = arguments.rows or sum(file.n for file in open_all(arguments.embeddings or []))
    classes = arguments.classes or 0
    if not classes and arguments.centroids:
        classes = Centroids(arguments.centroids).K
    labels = 1 if section.loss == "single" else arguments.top or section.positives or 0
    if config:
        classes, labels = classes or config.cluster.k, labels or config.label.top
    needed = {
        "rows": (n, "embeddings"), "classes": (classes, "centroids"), "top": (labels, "config"),
    }  # fmt: skip
    words = Words()
    if section.ocr_weight:
        ocr = config.ocr if config else Ocr()
        known = config.ocr.most_words if config else 0
        words = Words(known if arguments.words is None else arguments.words, ocr.top)
        needed["words"] = (words.classes, "config")
    elif arguments.words is not None:
        raise UserError("--words: train.ocr_weight is 0, so there is no second head; set it")
    for name, (value, other) in needed.items():
        if value <= 0:
            raise UserError(f"--{name}: --plan needs it, or --{other} to take it from")
    return n, classes, labels, words


def _phase(part: Part, threads: int, tight: bool) -> list[tuple[str, str]]:
    """Return what is printed of a phase: names and values. tight: activations are recomputed."""
    job, ranks = part.job, part.job.ranks
    accumulated = job.share // part.micro_batch
    per_gpu = part.rate / ranks
    decoders = -(-per_gpu // DECODED)
    enough = "" if threads > decoders else f"; with --threads {threads} there are {threads}"
    few = part.micro_batch < min(_FEW, job.share) and not tight
    advice = "; train.activation_checkpointing: true takes more" if few else ""
    at_once = f"{part.micro_batch} images at once, {accumulated} times per step{advice}"
    sent = network_bytes(job, part.footprint.weights, accumulated)
    return [
        (f"{job.side} pixels", f"{part.images:,} images, {part.images // job.batch:,} steps"),
        ("  micro-batch", at_once),
        ("  memory", f"{fit.in_words(part.need)} per GPU"),
        ("  images/s", f"{part.rate:,.0f}, {per_gpu:,.0f} per GPU at {part.flop / 1e9:,.1f} GFLOP"),
        ("  decoders", f"{decoders:.0f} of a GPU's cores{enough}"),
        ("  network", f"{decimal_size(sent)} sent by each rank per step (computed)"
                      if ranks > 1 else "nothing between ranks"),
        ("  time", f"{_time(part.seconds)}, {part.seconds * ranks / 3600:,.0f} GPU hours"),
    ]  # fmt: skip


def _time(seconds: float) -> str:
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h" if seconds < 48 * 3600 else f"{seconds / 86400:.1f} days"
