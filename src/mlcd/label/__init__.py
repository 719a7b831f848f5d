"""Stage `label`: the nearest centres of every picture become its labels.

One job labels one chunk; `--summarise` then counts over the labels of all chunks. Labels are
exact, or found by way of groups of centres and compared with exact ones on a sample. Ties go to the
lower id, and no result depends on memory limit, threads or device.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mlcd import lease
from mlcd.errors import UserError

if TYPE_CHECKING:
    from mlcd.config import Label


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the stage's files and resources."""
    work = parser.add_mutually_exclusive_group(required=True)
    work.add_argument(
        "--embeddings", metavar="E.h5", help="label the rows of this file, one chunk's embeddings"
    )
    work.add_argument(
        "--summarise", nargs="+", metavar="L.h5",
        help="instead of labelling, count over these labels (of all chunks) and write JSON",
    )  # fmt: skip
    parser.add_argument(
        "--centroids", required=True, metavar="C.h5", help="centres from stage cluster"
    )
    parser.add_argument(
        "--output", required=True, metavar="FILE", help="labels (h5) or summary (json) to write"
    )
    parser.add_argument(
        "--memory-limit", metavar="SIZE",
        help="memory of this process besides the centres, such as 1GiB [half of what is free]",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=int, default=0, help="threads [OMP_NUM_THREADS, or all CPUs]"
    )
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto",
        help="where to search; auto is cuda if faiss sees a GPU [auto]",
    )  # fmt: skip


def run(arguments: argparse.Namespace, section: Label) -> None:
    """Label one chunk, or summarise the labels of all. Raises :class:`UserError`."""
    from mlcd.files import write_json
    from mlcd.label.nearest import label_file
    from mlcd.label.summary import summarise
    from mlcd.neighbours import memory
    from mlcd.sizes import parse_size
    from mlcd.sources import code_hash
    from mlcd.stores.centroids import Centroids
    from mlcd.stores.embeddings import Embeddings

    centroids = Centroids(arguments.centroids)
    where = {"device": arguments.device, "threads": arguments.threads}
    if arguments.summarise:
        write_json(arguments.output, summarise(arguments.summarise, centroids, **where))
        return
    if section.top > centroids.K:
        raise UserError(
            f"label.top: {section.top} labels a picture, but {arguments.centroids} has only "
            f"{centroids.K} centres; lower top or raise cluster.k"
        )
    embeddings = Embeddings(arguments.embeddings)
    text = arguments.memory_limit
    limit = parse_size(text) if text else memory.default_limit()
    identity = (
        code_hash("label"),
        section.for_labels(),
        embeddings.fingerprint,
        centroids.fingerprint,
    )
    with lease.writing(arguments.output, *identity) as wanted:
        if wanted:
            label_file(arguments.embeddings, centroids, section, arguments.output, limit, **where)
