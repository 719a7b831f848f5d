"""What the training of a config takes of each GPU, before anything is submitted."""

from __future__ import annotations

from collections.abc import Iterator

from mlcd.commands.doctor.checks import Check, fail, ok
from mlcd.commands.doctor.demands import Demand
from mlcd.config import Config
from mlcd.utils.errors import UserError
from mlcd.utils.units import decimal_size


def checks(config: Config, asked: list[Demand], memory: int | None) -> Iterator[Check]:
    """Hold each phase of the training, and the text tower, against GPUs of `memory` bytes.

    None where no GPU was seen: then what the smallest micro-batch takes. Nothing is said of gangs
    without GPUs.
    """
    gangs = {demand.rule: demand for demand in asked if demand.gpu}
    if "train" in gangs:
        yield from _train(config, gangs["train"].ranks, memory)
    if "text" in gangs and config.text.enabled:
        yield _text(config, gangs["text"].ranks, memory)


def _train(config: Config, ranks: int, memory: int | None) -> Iterator[Check]:
    from mlcd.stages.train import fit
    from mlcd.stages.train.phases import phases
    from mlcd.training import mosaics
    from mlcd.training.driver import check_share
    from mlcd.training.memory import need

    section = config.train
    classes = config.cluster.k
    labels = 1 if section.loss == "single" else section.positives or config.label.top
    if section.ocr_weight:
        # The second head, with as many words as there may be.
        classes, labels = classes + config.ocr.most_words, labels + config.ocr.top
    for phase in phases(section, 1):
        name = f"training, {phase.image_size} px"
        try:
            check_share("train", section.batch_size, ranks)
            mosaics.check_share(section, ranks)
            job = fit.job(
                section, ranks=ranks, side=phase.image_size, classes=classes,
                labels=labels, memory_limit=None,
            )  # fmt: skip
            size = fit.chosen(section, job, memory) if memory else job.unit
            taken = need(job, fit.footprint_of(section, phase.image_size), size)
        except UserError as error:
            told, _, fix = str(error).rpartition("; ")
            yield fail(name, told, fix)
            return
        of = f" of {decimal_size(memory)}" if memory else " at least"
        yield ok(name, f"{size} of a rank's {job.share} images at once: {fit.in_words(taken)}{of} "
                       f"on each of {ranks} GPUs")  # fmt: skip


def _text(config: Config, ranks: int, memory: int | None) -> Check:
    from mlcd.stages.text import fit

    section, dim = config.text, config.train.embedding_dim
    asked = fit.job(section, ranks, dim)
    taken = fit.need(asked, fit.footprint(section, dim, section.activation_checkpointing))
    if memory and (told := fit.refusal(section, asked, memory)):
        seen, _, fix = told.rpartition("; ")
        return fail("text tower", seen, fix)
    return ok("text tower", f"{asked.share} pairs at once: {decimal_size(taken.total)} on each of "
                            f"{ranks} GPUs")  # fmt: skip
