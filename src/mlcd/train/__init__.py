"""Stage `train`: the driver. It checks the inputs, starts the ranks, and waits for them.

The ranks' work is in :mod:`mlcd.train.loop`; nothing heavy is imported before it is needed.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from mlcd import launch
from mlcd.config.train import Train
from mlcd.errors import UserError
from mlcd.files import sha256_json, state_dir
from mlcd.sizes import parse_size
from mlcd.sources import code_hash
from mlcd.training import gang


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Files, ranks, and how often to save."""
    add = parser.add_argument
    add("--labels", nargs="+", required=True, metavar="L.h5", help="labels of all chunks")
    add("--embeddings", nargs="+", required=True, metavar="E.h5",
        help="embeddings of the same chunks; they say where each picture lies")  # fmt: skip
    add("--images", nargs="+", required=True, metavar="MANIFEST",
        help="manifest.json (or folder) of the same chunks' pictures")  # fmt: skip
    add("--centroids", required=True, metavar="C.h5", help="the centres behind the labels")
    add("--output", required=True, metavar="DIR",
        help="folder for encoder.safetensors, encoder.json, metrics.jsonl, tensorboard/ and "
        "state/ (checkpoints)")  # fmt: skip
    launch.add_arguments(parser, ranks_per_node=2)
    add("--micro-batch", type=int, default=0, metavar="N",
        help="pictures a rank takes at once; 0: its whole share of train.batch_size. Smaller ones "
        "take less memory and give the same losses (but for batch norm's) [0]")  # fmt: skip
    add(
        "--high-res-micro-batch",
        type=int,
        default=None,
        metavar="N",
        help="the same in the high-resolution phase, whose pictures are larger [--micro-batch]",
    )
    add("--memory-limit", metavar="SIZE",
        help="memory of a rank for a block of the classifier's logits, such as 256MiB; changes no "
        "result [8MiB on CPUs, 256MiB on GPUs]")  # fmt: skip
    add("--workers", type=int, default=1, metavar="N",
        help="processes a rank that read and decode pictures; 0: the rank itself [1]")  # fmt: skip
    gang.add_arguments(parser, checkpoint_every=100)


def run(arguments: argparse.Namespace, section: Train) -> None:
    """Train on a gang of ranks; the same command goes on after any interruption."""
    from mlcd.train.final import write_encoder
    from mlcd.train.loop import train_rank

    resources = launch.resources(arguments)
    output = Path(arguments.output)
    gang.run(
        train_rank,
        plan(arguments, section, resources),
        output,
        ("encoder.safetensors", "encoder.json"),
        resources,
        lambda checkpoint: write_encoder(checkpoint, section, output),
    )


def plan(
    arguments: argparse.Namespace, section: Train, resources: launch.Resources
) -> dict[str, Any]:
    """Check all inputs, lay out the index, and return the fields of :class:`mlcd.train.loop.Run`.

    Raises :class:`UserError` for anything that does not fit, before any rank starts.
    """
    from mlcd.train import inputs

    micro_batches = _micro_batches(arguments, section, resources.ranks)
    gang.check_arguments(arguments)
    memory_limit = parse_size(arguments.memory_limit) if arguments.memory_limit else None
    if section.high_res_image_size is not None:
        from mlcd.encoders.resize import check

        # Now, and not after days at the first size.
        check(section.model, section.embedding_dim, section.image_size, section.high_res_image_size)
    sources = inputs.check(
        arguments.labels, arguments.embeddings, arguments.images, arguments.centroids
    )
    output = Path(arguments.output)
    # With the code, so that an edited loss never goes on from what the old one learned.
    identity = [code_hash("train"), section.model_dump(mode="json"), *sources.identity]
    state = state_dir(output / "encoder.safetensors", *identity)
    n = inputs.build_index(sources, state / "index", section.positives)
    if n < section.batch_size:
        raise UserError(
            f"train.batch_size: {section.batch_size} pictures a step, but only {n} have labels; "
            "lower it"
        )
    return {
        "section": section.model_dump(mode="json"),
        "identity": sha256_json(identity),
        "centroids": str(Path(arguments.centroids).resolve()),
        "state": str(state.resolve()),
        "output": str(output.resolve()),
        "device": "cuda" if resources.gpus else "cpu",
        "micro_batch": micro_batches[0],
        "high_res_micro_batch": micro_batches[1],
        "memory_limit": memory_limit,
        "workers": arguments.workers,
        "checkpoint_every": arguments.checkpoint_every,
        "keep": arguments.keep,
    }


def _micro_batches(arguments: argparse.Namespace, section: Train, ranks: int) -> list[int]:
    """Return the micro-batches of the two phases.

    Refuses what does not divide: every rank takes the same number of pictures at each step.
    """
    gang.check_share("train", section.batch_size, ranks)
    share = section.batch_size // ranks
    found = [arguments.micro_batch, arguments.high_res_micro_batch]
    found[1] = found[0] if found[1] is None else found[1]
    for option, size in zip(("--micro-batch", "--high-res-micro-batch"), found, strict=True):
        if size < 0 or (size and share % size):
            raise UserError(
                f"{option}: {size} does not divide a rank's {share} pictures a step; "
                "choose a divisor, or 0"
            )
    return found
