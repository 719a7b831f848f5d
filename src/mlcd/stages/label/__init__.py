"""Stage `label`: the nearest centers of every image become its labels.

One job labels one chunk; `--summarize` then counts over the labels of all chunks. Labels are
exact, or found by way of groups of centers and compared with exact ones on a sample. Ties go to the
lower id, and no result depends on memory limit, threads or device.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from mlcd.data.own import options as own_options
from mlcd.launch import lease, options
from mlcd.utils.errors import UserError

if TYPE_CHECKING:
    from mlcd.config import Label


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the stage's files and resources."""
    work = parser.add_mutually_exclusive_group(required=True)
    work.add_argument(
        "--embeddings", metavar="E.h5", help="label the rows of this file, one chunk's embeddings"
    )
    work.add_argument(
        "--summarize", nargs="+", metavar="L.h5",
        help="instead of labeling, count over these labels (of all chunks) and write JSON",
    )  # fmt: skip
    work.add_argument(
        "--images", metavar="MANIFEST",
        help="take the labels of --labels for the images of this chunk, without any center",
    )  # fmt: skip
    parser.add_argument(
        "--centroids", metavar="C.h5", help="centers of stage cluster, or a file as --centers of "
        "mlcd cluster; with own labels not needed",
    )  # fmt: skip
    parser.add_argument("--classes", type=int, metavar="K", help="with --images: number of classes")
    own_options.add_arguments(parser)
    parser.add_argument(
        "--output", required=True, metavar="FILE", help="labels (h5) or summary (json) to write"
    )
    parser.add_argument(
        "--memory-limit", metavar="SIZE",
        help="memory of this process besides the centers, such as 1GiB [half of what is free]",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=int, default=0, help="threads [OMP_NUM_THREADS, or all CPUs]"
    )
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto",
        help="where to search; auto is cuda if there is a GPU [auto]",
    )  # fmt: skip
    options.add_products(parser)


def run(arguments: argparse.Namespace, section: Label) -> None:
    """Label one chunk, or summarize the labels of all. Raises :class:`UserError`."""
    from mlcd.data.centroids import Centroids
    from mlcd.data.embeddings import Embeddings
    from mlcd.neighbors import memory
    from mlcd.stages.label.nearest import label_file
    from mlcd.stages.label.summary import summarize
    from mlcd.utils.fingerprint import code_hash
    from mlcd.utils.ownership import claim
    from mlcd.utils.records import write_record
    from mlcd.utils.units import parse_size

    claim(arguments.output)
    if arguments.images is not None:
        _take_own(arguments, section)
        return
    centroids = Centroids(arguments.centroids) if arguments.centroids else None
    where = {"device": options.search_place(arguments), "threads": arguments.threads}
    if arguments.summarize:
        write_record(arguments.output, summarize(arguments.summarize, centroids, **where))
        return
    if centroids is None:
        raise UserError("--centroids: needed to find the nearest; give them, or own --labels")
    if section.top > centroids.K:
        raise UserError(
            f"label.top: {section.top} labels per image, but {arguments.centroids} has only "
            f"{centroids.K} centers; lower top or raise cluster.k"
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


def _take_own(arguments: argparse.Namespace, section: Label) -> None:
    from mlcd.stages.label.own import take_own

    if section.labels is None or arguments.classes is None:
        raise UserError("--images: needs own --labels and their number of --classes; give both")
    if not 0 < arguments.classes < 2**31:
        raise UserError(f"--classes: expected a positive number, got {arguments.classes}")
    how = own_options.of_options(arguments, section.key)
    take_own(arguments.images, arguments.output, section, arguments.classes, how)
