"""Stage embed: features of a frozen encoder for every image of a chunk.

Main files: `chunk.py` (the flow and the output), `sources.py` (where images are),
:mod:`mlcd.data.decode_pool` (decoding processes that may die), and :mod:`mlcd.models.frozen`.
"""

from __future__ import annotations

import argparse
import os

from mlcd.config import Embed
from mlcd.data.own import options
from mlcd.utils.errors import UserError


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the files of the stage and how wide it runs."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    cores = cores or 1
    parser.add_argument(
        "--images", required=True, metavar="DIR", help="a chunk of stage download (its folder or "
        "manifest.json), or any folder of webdataset tars",
    )  # fmt: skip
    parser.add_argument("--output", required=True, metavar="E.h5", help="embeddings to write")
    parser.add_argument(
        "--encoder", metavar="DIR", help="embed with the trained encoder of this folder "
        "(results/train) in place of embed.model",
    )  # fmt: skip
    options.add_arguments(parser)
    parser.add_argument(
        "--device", default="auto", help="torch's device; auto is cuda if there is one [auto]"
    )
    parser.add_argument(
        "--workers", type=int, metavar="N",
        help="processes that decode images; the output is the same for any number [with a GPU all "
        "of --threads but one, else half of them]",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=int, default=cores, metavar="N",
        help="cores to use: threads of the encoder on a CPU, and what --workers follows from "
        "[%(default)s]",
    )  # fmt: skip


def run(arguments: argparse.Namespace, section: Embed) -> None:
    """Embed one chunk, or take its own embeddings. Raises :class:`UserError`."""
    if section.embeddings is not None:
        from mlcd.stages.embed.own import take_own

        if arguments.encoder is not None:
            raise UserError("--encoder: embeds by itself; leave out embed.embeddings")
        how = options.of_options(arguments, section.key)
        take_own(arguments.images, arguments.output, section, how)
        return
    from mlcd.stages.embed.chunk import embed
    from mlcd.utils.device import decoders

    workers = arguments.workers
    if workers is None:
        workers = decoders(arguments.device, arguments.threads)
    embed(
        arguments.images,
        arguments.output,
        section,
        encoder_folder=arguments.encoder,
        device=arguments.device,
        workers=workers,
        threads=arguments.threads,
    )
