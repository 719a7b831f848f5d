"""Stage `train`: the driver. It checks the inputs, starts the ranks, and waits for them.

The ranks' work is in :mod:`mlcd.stages.train.task`; nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcd.config.train import Train
from mlcd.launch import live, options
from mlcd.stages.train.arguments import TrainArguments
from mlcd.training import driver
from mlcd.utils.errors import UserError
from mlcd.utils.files import sha256_json, state_dir
from mlcd.utils.ownership import claim
from mlcd.utils.units import parse_size

if TYPE_CHECKING:
    from mlcd.models.initial import Source
    from mlcd.stages.train.inputs import Sources


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Files, ranks, and how often to save."""
    add = parser.add_argument
    add("--labels", nargs="+", default=[], metavar="L.h5", help="labels of all chunks")
    add("--embeddings", nargs="+", default=[], metavar="E.h5",
        help="embeddings of the same chunks; they say where each image lies. Own labels do it "
        "themselves")  # fmt: skip
    add("--images", nargs="+", default=[], metavar="MANIFEST",
        help="manifest.json (or folder) of the same chunks' images")  # fmt: skip
    add("--centroids", metavar="C.h5",
        help="the centers behind the labels; own labels may have none")  # fmt: skip
    add("--region-embeddings", nargs="+", default=[], metavar="R.h5",
        help="with train.regions: boxes, regions of the same chunks")  # fmt: skip
    add("--region-labels", nargs="+", default=[], metavar="L.h5", help="labels of these regions")
    add("--ocr-labels", nargs="+", default=[], metavar="W.h5",
        help="words of the same images, of mlcd ocr, for train.ocr_weight")  # fmt: skip
    add("--output", metavar="DIR",
        help="folder for encoder.safetensors, encoder.json, metrics.jsonl, tensorboard/ and "
        "state/ (checkpoints)")  # fmt: skip
    options.add_arguments(parser, ranks_per_node=2)
    add("--micro-batch", type=_images, default="auto", metavar="N|auto",
        help="images that a rank takes at once; 0: its whole share of train.batch_size; auto: on "
        "GPUs the largest part of it that fits their memory. Smaller ones take less memory and "
        "give the same losses (but for batch norm's) [auto]")  # fmt: skip
    add(
        "--high-res-micro-batch",
        type=_images,
        default=None,
        metavar="N|auto",
        help="the same in the high-resolution phase, whose images are larger [--micro-batch]",
    )
    add("--memory-limit", metavar="SIZE",
        help="memory of a rank for a block of the classifier's logits, such as 256MiB; changes no "
        "result [8MiB on CPUs, 256MiB on GPUs]")  # fmt: skip
    add("--workers", type=int, metavar="N",
        help="processes per rank that read and decode images; 0: the rank itself [with a GPU all "
        "cores of the rank but one, else 1]")  # fmt: skip
    driver.add_arguments(parser, checkpoint_every=100)
    live.add_arguments(parser)
    _add_plan_arguments(parser)


def _add_plan_arguments(parser: argparse.ArgumentParser) -> None:
    """What `--plan` asks where the files do not say it."""
    add = parser.add_argument
    add("--check", action="store_true",
        help="do not train: build the encoder and read train.initial (a tag is fetched), say what "
        "fits and what does not, and end; needs no file of an earlier stage")  # fmt: skip
    add("--plan", action="store_true",
        help="do not train: print memory per GPU, images per second, cores that decode, bytes over "
        "the network, and days, by arithmetic; needs no file, no GPU and no Slurm")  # fmt: skip
    add("--rows", type=int, metavar="N", help="with --plan: images [those of --embeddings]")
    add("--classes", type=int, metavar="K",
        help="with --plan: classes [those of --centroids, else cluster.k of "
        "--config]")  # fmt: skip
    add("--top", type=int, metavar="L",
        help="with --plan: labels per image [train.positives, else label.top of "
        "--config]")  # fmt: skip
    add("--words", type=int, metavar="M",
        help="with --plan and train.ocr_weight: classes of the second head [ocr.most_words of "
        "--config]")  # fmt: skip
    add("--gpu", metavar="NAME", help="with --plan: each rank has such a GPU (a100, h100, …)")
    add("--gpu-memory", metavar="SIZE", help="with --plan: memory of a GPU [that of --gpu]")
    add("--flops", type=float, metavar="F",
        help="with --plan: FLOP per second that each rank reaches in the encoder's precision, "
        "instead of --gpu's")  # fmt: skip


def run(arguments: argparse.Namespace, section: Train) -> None:
    """Train on a gang of ranks; the same command resumes after any interruption."""
    if arguments.check:
        from mlcd.stages.train.start import check_all

        return check_all(section)
    from mlcd.stages.train.final import write_encoder
    from mlcd.stages.train.task import train_rank

    for name in ("labels", "images", "output"):
        if not getattr(arguments, name):
            raise UserError(f"--{name}: needed to train; give it, or --plan to ask what it takes")
    resources = options.resources(arguments)
    output = Path(arguments.output)
    names = ["encoder.safetensors", "encoder.json"]
    names += ["regions.safetensors"] if section.regions else []
    claim(*(output / name for name in (*names, "metrics.jsonl", live.SCORES)))
    rank_arguments, sources, first = _plan(arguments, section, resources)
    driver.run(
        train_rank,
        rank_arguments,
        output,
        names,
        resources,
        lambda last: write_encoder(last, section, output, rank_arguments.made_from),
        lambda: _lay_out(sources, rank_arguments.state, section, first),
    )
    live.publish(rank_arguments.state, output)


def plan(
    arguments: argparse.Namespace, section: Train, resources: options.Resources
) -> TrainArguments:
    """Check all inputs, lay out the index, and return what every rank is told.

    Raises :class:`UserError` for anything that does not fit, before any rank starts.
    """
    rank_arguments, sources, first = _plan(arguments, section, resources)
    _lay_out(sources, rank_arguments.state, section, first)
    return rank_arguments


def _lay_out(sources: Sources, state: Path, section: Train, first: Source | None) -> None:
    """Write what the ranks read: the index of all labeled images, and the first weights."""
    from mlcd.stages.train import inputs

    if first is not None:
        from mlcd.models import initial

        initial.write(initial.read(first, section), state)

    total = inputs.build_index(sources, state / "index", section.positives)
    if total < section.batch_size:
        raise UserError(
            f"train.batch_size: {section.batch_size} images per step, but only {total} have "
            "labels; lower it"
        )


def _plan(
    arguments: argparse.Namespace, section: Train, resources: options.Resources
) -> tuple[TrainArguments, Sources, Source | None]:
    """Check all inputs; return the ranks' arguments, and the inputs for :func:`_lay_out`."""
    from mlcd.stages.train import inputs, start

    found = micro_batches(arguments, section, resources.ranks)
    driver.check_arguments(arguments)
    memory_limit = parse_size(arguments.memory_limit) if arguments.memory_limit else None
    start.check_encoder(section)
    first = start.source_of(section)
    boxes = arguments.region_embeddings, arguments.region_labels
    if any(boxes) != (section.regions == "boxes"):
        told = "nothing reads them; set train.regions to boxes, or leave them out"
        if section.regions == "boxes":
            told = "needed with train.regions: boxes, with --region-labels; give both"
        raise UserError(f"--region-embeddings: {told}")
    sources = inputs.check(
        arguments.labels, arguments.embeddings, arguments.images, arguments.centroids, *boxes,
        words=_words(arguments, section),
    )  # fmt: skip
    if section.center_init == "centroids" and sources.centroids is None:
        raise UserError(
            "train.center_init: own labels come without centers; set it to random, or give "
            "--centroids"
        )
    output = Path(arguments.output)
    # The code is no part of it: mlcd.launch.resume sees to what other code has saved.
    named = {**section.model_dump(mode="json"), "initial": first.sha256 if first else None}
    identity = [named, *sources.identity]
    state = state_dir(output / "encoder.safetensors", *identity)
    planned = TrainArguments(
        section=section,
        identity=sha256_json(identity),
        centroids=Path(arguments.centroids).resolve() if arguments.centroids else None,
        num_classes=sources.num_classes,
        num_words=sources.words[0].num_classes if sources.words else 0,
        state=state.resolve(),
        output=output.resolve(),
        device="cuda" if resources.gpus else "cpu",
        micro_batch=found[0],
        high_res_micro_batch=found[1],
        memory_limit=memory_limit,
        workers=_workers(arguments.workers, resources),
        made_from=sources.made_from,
        checkpoint_every=arguments.checkpoint_every,
        keep=arguments.keep,
        live=live.planned(arguments),
    )
    return planned, sources, first


def _words(arguments: argparse.Namespace, section: Train) -> list[str]:
    """Return the files of words that are trained on. Raises :class:`UserError`."""
    if section.ocr_weight and not arguments.ocr_labels:
        raise UserError(
            "--ocr-labels: train.ocr_weight needs the words of the images; give those of mlcd ocr, "
            "or set it to 0"
        )
    found: list[str] = arguments.ocr_labels if section.ocr_weight else []
    return found


def _workers(asked: int | None, resources: options.Resources) -> int:
    """Return the number of reading processes per rank.

    A GPU leaves the rank's cores free: one drives it, the others read. On CPUs the encoder is by
    far the slower part, and takes all cores itself.
    """
    if asked is None:
        return max(1, resources.threads - 1) if resources.gpus else 1
    if asked < 0:
        raise UserError(f"--workers: expected at least 0 processes per rank, got {asked}")
    return asked


def _images(text: str) -> int | str:
    """Read a micro-batch."""
    return text if text == "auto" else int(text)


def micro_batches(arguments: argparse.Namespace, section: Train, ranks: int) -> list[Any]:
    """Return the micro-batches of the two phases.

    Refuses what does not divide: every rank takes the same number of images at each step.
    """
    from mlcd.training.mosaics import check_share

    driver.check_share("train", section.batch_size, ranks)
    check_share(section, ranks)
    share, mosaic = section.batch_size // ranks, section.mosaic
    found = [arguments.micro_batch, arguments.high_res_micro_batch]
    found[1] = found[0] if found[1] is None else found[1]
    for option, size in zip(("--micro-batch", "--high-res-micro-batch"), found, strict=True):
        if isinstance(size, int) and (size < 0 or (size and share % size)):
            raise UserError(
                f"{option}: {size} does not divide a rank's {share} images per step; "
                "choose a divisor, 0, or auto"
            )
        if isinstance(size, int) and mosaic and size % mosaic.rows:
            raise UserError(
                f"{option}: {size} images are no multiple of {mosaic.rows} ({mosaic.words}: "
                "train.mosaic_grid, train.mosaic_share); choose one, 0, or auto"
            )
    return found
