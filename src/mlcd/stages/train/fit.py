"""The micro-batch that fits a GPU: chosen by the memory model, agreed on by all ranks, and kept.

What was chosen stays in the state folder, so that a run that resumes on other cards keeps its
arithmetic where it fits.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from mlcd.classifier.sharded import CUDA_BLOCK
from mlcd.config.mosaic import Mosaic
from mlcd.config.train import Train
from mlcd.launch.process_group import RankPlace
from mlcd.models import layers
from mlcd.models.footprint import Footprint, measure
from mlcd.models.region_encoder import with_regions
from mlcd.stages.train.engine import checkpoint_activations
from mlcd.stages.train.start import without_numbers
from mlcd.training.memory import Job, Need, largest, need, usable
from mlcd.training.mosaics import Layout
from mlcd.utils.errors import UserError
from mlcd.utils.files import read_json, write_json
from mlcd.utils.logging import LOGGER
from mlcd.utils.units import decimal_size

#: The choice, below the state folder: image side → micro-batch.
FILE = "micro_batch.json"
#: Ranks that a refusal proposes at most.
_MOST_RANKS = 4096


def job(
    section: Train, *, ranks: int, side: int, classes: int, labels: int, memory_limit: int | None
) -> Job:
    """Return what the memory model asks of a training on GPUs."""
    return Job(
        ranks=ranks,
        stage=section.zero_stage,
        batch=section.batch_size,
        side=side,
        classes=classes,
        dim=section.embedding_dim,
        labels=labels,
        sampled=round(section.negative_ratio * classes),
        block=memory_limit or CUDA_BLOCK,
        halves=section.precision == "bf16",
        unit=unit(section),
        rows=1 + per_image(section),
    )


def per_image(section: Train) -> int:
    """Return the regions of each image that are rows of a step."""
    return section.regions_per_image if section.regions == "boxes" else 0


def unit(section: Train) -> int:
    """Return the images of which every micro-batch is a multiple."""
    return section.mosaic.rows if section.mosaic else 1


@functools.cache
def footprint(
    model: str, dim: int, side: int, drop_path: float, bf16: bool, checkpointing: bool,
    frozen: int = 0, mosaic: Mosaic | None = None, regions: int = 0,
) -> Footprint:  # fmt: skip
    """Return the footprint of an encoder by name, with its first `frozen` layers not trained.

    With a `mosaic` per row, of which several share a canvas, region layer included. With so many
    `regions` of each image they are part of it.

    Raises :class:`UserError`.
    """
    encoder = without_numbers(model, dim, side, drop_path)
    if checkpointing:
        checkpoint_activations(encoder)
    if mosaic or regions:
        encoder = with_regions(encoder)
    layers.freeze(encoder, frozen)
    try:
        if regions:
            return measure(encoder, bf16=bf16, inputs=partial(_with_regions, regions, side))
        if not mosaic:
            return measure(encoder, bf16=bf16)
        found = measure(encoder, bf16=bf16, inputs=partial(_groups, mosaic, side))
        return dataclasses.replace(
            found,
            per_image=-(-found.per_image // mosaic.rows),
            flop=found.flop // mosaic.rows,
        )
    except Exception as error:  # an operator without shapes of its own, or a shape that data decide
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(
            f"train.model: the memory of {model} cannot be found by shapes ({first}); "
            "set --micro-batch to a number"
        ) from None


def _with_regions(regions: int, side: int, count: int) -> tuple[Any, ...]:
    """Return what an encoder sees of so many images."""
    images = torch.empty(count, 3, side, side, device="cpu")
    owner = torch.arange(count, device="cpu").repeat_interleave(regions)
    return images, torch.empty(len(owner), 4, device="cpu"), owner, count


def _groups(mosaic: Mosaic, side: int, count: int) -> tuple[Any, ...]:
    """Return what an encoder sees of so many groups."""
    layout = Layout(mosaic, count)
    boxes = layout.boxes()
    assert boxes is not None
    images = torch.empty(layout.images, 3, side, side, device="cpu")
    return images, boxes.box, boxes.owner, boxes.whole


def footprint_of(section: Train, side: int, checkpointing: bool | None = None) -> Footprint:
    """Return the footprint of the section's encoder, or of that with `checkpointing`."""
    if checkpointing is None:
        checkpointing = section.activation_checkpointing
    return footprint(
        section.model, section.embedding_dim, side, section.drop_path,
        section.precision == "bf16", checkpointing, section.freeze_layers, section.mosaic,
        per_image(section),
    )  # fmt: skip


def on_ranks(
    wanted: int | str, section: Train, place: RankPlace, state: Path, asked: Callable[[], Job]
) -> int:
    """Return the micro-batch of every rank; collective.

    `wanted`: a number of images, 0 for the whole share, or ``auto``: on GPUs what fits the one with
    the least memory, on CPUs the whole share. Raises :class:`UserError` on all ranks if none fits.
    """
    share = section.batch_size // place.world_size
    if wanted != "auto" or place.device.type != "cuda":
        return share if wanted == "auto" else int(wanted) or share
    memory = torch.tensor(
        torch.cuda.get_device_properties(place.device).total_memory, device=place.device
    )
    dist.all_reduce(memory, dist.ReduceOp.MIN)
    choice: list[Any] = [None]
    if place.is_main:
        try:
            choice = [settled(state / FILE, section, asked(), int(memory))]
        except UserError as error:
            choice = [str(error)]
    dist.broadcast_object_list(choice, 0)
    if isinstance(choice[0], str):
        raise UserError(choice[0])
    return int(choice[0])


def settled(path: Path, section: Train, job: Job, memory: int) -> int:
    """Return the micro-batch of `job` on GPUs of `memory` bytes: that in `path` if it still fits,
    else the largest that does, which is then written there. Raises :class:`UserError`.
    """
    known = read_json(path) if path.exists() else {}
    found = footprint_of(section, job.side)
    size = known.get(str(job.side))
    if not (
        isinstance(size, int)
        and 0 < size <= job.share
        and job.share % size == size % job.unit == 0
        and need(job, found, size).total <= usable(memory)
    ):
        size = chosen(section, job, memory)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {**known, str(job.side): size})
    LOGGER.info(
        "%d images of %d pixels at once: %s of a GPU's %s",
        size, job.side, in_words(need(job, found, size)), decimal_size(memory),
    )  # fmt: skip
    return size


def chosen(section: Train, job: Job, memory: int) -> int:
    """Return the largest micro-batch that fits. Raises :class:`UserError` with what would fit."""
    found = footprint_of(section, job.side)
    size = largest(job, found, memory)
    if size is None:
        raise UserError(refusal(section, job, memory, job.unit))
    return size


def refusal(section: Train, job: Job, memory: int, micro_batch: int) -> str:
    """Say that a GPU of `memory` bytes is too small, and what comes nearest that fits."""
    least = need(job, footprint_of(section, job.side), micro_batch)
    return (
        f"train: {micro_batch} image{'s' * (micro_batch > 1)} of {job.side} pixels at once take "
        f"{in_words(least)}, but a GPU has {decimal_size(memory)}, of which "
        f"{decimal_size(usable(memory))} are planned for; {_nearest(section, job, memory)}"
    )


def in_words(need: Need) -> str:
    """Return a need and its parts."""
    return (
        f"{decimal_size(need.total)} (encoder {decimal_size(need.encoder)}, centers "
        f"{decimal_size(need.centers)}, images {decimal_size(need.images)}, loss "
        f"{decimal_size(need.loss)})"
    )


def _nearest(section: Train, job: Job, memory: int) -> str:
    """Return the first of the ways out that fits, in words."""
    for words, checkpointing, changed in _ways_out(section, job):
        try:
            found = footprint_of(section, job.side, checkpointing)
        except UserError:
            continue
        if size := largest(changed, found, memory):
            return f"set {words} ({size} at once)"
    return "take GPUs with more memory"


def _ways_out(section: Train, job: Job) -> Iterator[tuple[str, bool, Job]]:
    """Iterate over other settings, the nearest first: words, checkpointing, job."""
    on = section.activation_checkpointing
    yield "a smaller --micro-batch", on, job
    checkpoint = "train.activation_checkpointing: true"
    if not on:
        yield checkpoint, True, job
    also = "" if on else f"{checkpoint}, "
    most = 2 if section.compile else 3
    for stage in range(job.stage + 1, most + 1) if job.ranks > 1 else ():
        higher = dataclasses.replace(job, stage=stage)
        yield f"train.zero_stage: {stage}", on, higher
        yield f"{also}train.zero_stage: {stage}", True, higher
    ranks = 2 * job.ranks
    while ranks <= min(_MOST_RANKS, job.batch):
        if job.batch % (ranks * job.unit) == 0:
            wider = dataclasses.replace(job, ranks=ranks)
            yield f"{ranks} GPUs", on, wider
            yield f"{also}{ranks} GPUs", True, wider
        ranks *= 2
