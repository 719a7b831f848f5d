"""Stage `curate`: which images are kept, between embed and cluster.

Three parts. `facts`, one job per chunk: the nearest coarse clusters of each row, its pixels, and
whether a condition refuses it. `choice`, one job: duplicates within clusters, groups of them over
all chunks, balance and cap. `kept`, one job per chunk: the embeddings that are kept, as later
stages read them. The coarse clusters are centers of the stage cluster.

Nothing depends on the memory limit, the threads or the device. Read `choice.py` first.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mlcd.utils.errors import UserError

if TYPE_CHECKING:
    from mlcd.config import Curate

#: Part → the options that it needs.
_PARTS = {
    "facts": ("embeddings", "images", "centroids"),
    "choice": ("embeddings", "facts"),
    "kept": ("embeddings", "rows"),
}


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the stage's files and resources."""
    parser.add_argument(
        "--part", required=True, choices=_PARTS, help="facts of a chunk's images; choice over all "
        "chunks; the kept embeddings of a chunk",
    )  # fmt: skip
    parser.add_argument(
        "--embeddings", required=True, nargs="+", metavar="E.h5",
        help="embeddings of the chunk; with choice of all chunks, whose order counts",
    )  # fmt: skip
    parser.add_argument("--images", metavar="MANIFEST", help="the chunk's images [facts]")
    parser.add_argument(
        "--centroids", metavar="C.h5", help="coarse centers, of mlcd cluster [facts]"
    )
    parser.add_argument(
        "--metadata", metavar="LIST", help="the chunk's list, for conditions without own tables "
        "[facts]",
    )  # fmt: skip
    parser.add_argument(
        "--list-rows", metavar="START:STOP", help="rows of the list that are the chunk's [facts]"
    )
    parser.add_argument(
        "--url-column", default="url", metavar="NAME", help="column of URLs of the list [url]"
    )
    parser.add_argument(
        "--urls", metavar="FILE", help="with own tables: the chunk's table of images on disk, "
        "which tells where paths begin [facts]",
    )  # fmt: skip
    parser.add_argument(
        "--tar-keys", action="store_true", help="with own tables: the key may hold webdataset keys"
    )
    parser.add_argument(
        "--facts", nargs="+", metavar="F.h5", help="facts of all chunks, as --embeddings [choice]"
    )
    parser.add_argument("--rows", metavar="R.h5", help="which rows of the chunk are kept [kept]")
    parser.add_argument(
        "--output", required=True, metavar="PATH", help="facts or kept embeddings (h5) to write; "
        "with choice the folder for rows/CHUNK.h5 and summary.json",
    )  # fmt: skip
    parser.add_argument(
        "--memory-limit", metavar="SIZE", help="memory of this process, such as 1GiB [half of what "
        "is free]",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=int, default=0, help="threads [OMP_NUM_THREADS, or all CPUs]"
    )
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto",
        help="where nearest clusters are searched; auto is cuda if there is a GPU [auto]",
    )  # fmt: skip


def run(arguments: argparse.Namespace, section: Curate) -> None:
    """Do one part. Raises :class:`UserError`."""
    from mlcd.neighbors import memory
    from mlcd.utils.units import parse_size

    for option in _PARTS[arguments.part]:
        if not getattr(arguments, option):
            raise UserError(f"--{option}: needed for --part {arguments.part}; give it")
    if arguments.part != "choice" and len(arguments.embeddings) > 1:
        raise UserError(f"--embeddings: --part {arguments.part} takes one file, of one chunk")
    text = arguments.memory_limit
    limit = parse_size(text) if text else memory.default_limit()
    if arguments.part == "facts":
        from mlcd.stages.curate.facts import write_facts

        write_facts(arguments, section, limit)
    elif arguments.part == "choice":
        from mlcd.stages.curate.choice import choose

        choose(
            arguments.embeddings, arguments.facts, arguments.output, section, limit,
            threads=arguments.threads,
        )  # fmt: skip
    else:
        from mlcd.stages.curate.kept import write_kept

        write_kept(arguments.embeddings[0], arguments.rows, arguments.output)
