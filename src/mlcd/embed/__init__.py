"""Stage embed: features of a frozen encoder for every picture of a chunk.

Main files: `stage.py` (the flow and the output), `pool.py` (decoding processes that may die),
`sources.py` (where pictures are), and :mod:`mlcd.encoders.frozen`.
"""

from __future__ import annotations

import argparse
import os

from mlcd.config import Embed


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
    parser.add_argument(
        "--device", default="auto", help="torch's device; auto is cuda if there is one [auto]"
    )
    parser.add_argument(
        "--workers", type=int, default=min(16, max(1, cores // 2)), metavar="N",
        help="processes that decode pictures; the output is the same for any number [%(default)s]",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=int, default=cores, metavar="N",
        help="threads of the encoder on a CPU [%(default)s]",
    )  # fmt: skip


def run(arguments: argparse.Namespace, section: Embed) -> None:
    """Embed one chunk. Raises :class:`mlcd.errors.UserError`."""
    from mlcd.embed.stage import embed

    embed(
        arguments.images,
        arguments.output,
        section,
        encoder_folder=arguments.encoder,
        device=arguments.device,
        workers=arguments.workers,
        threads=arguments.threads,
    )
