"""Stage `cluster`: spherical k-means over all embeddings, streamed and resumable.

The centroids are the same bytes whatever the memory limit, the threads and the device, and after
any interruption; see :mod:`mlcd.neighbours.exact` and :mod:`mlcd.cluster.sums` for why. That holds
in both modes: each row compared to all centres, or :mod:`mlcd.cluster.two_level`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from mlcd import launch, lease
from mlcd.errors import UserError
from mlcd.files import state_dir, write_text
from mlcd.sources import code_hash

if TYPE_CHECKING:
    from mlcd.config import Cluster
    from mlcd.stores.embeddings import Embeddings

#: Written beside the centroids: one JSON object an iteration.
ITERATIONS = "iterations.jsonl"


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the stage's files and resources."""
    parser.add_argument(
        "--embeddings", nargs="+", default=[], metavar="E.h5",
        help="embeddings of all chunks: HDF5 with a dataset 'embedding' [n, d]; their order counts",
    )  # fmt: skip
    parser.add_argument(
        "--output", metavar="C.h5",
        help=f"centroids to write; {ITERATIONS} is written beside them",
    )  # fmt: skip
    parser.add_argument(
        "--memory-limit", metavar="SIZE",
        help="memory of each rank besides the centres, such as 1GiB; rows that do not fit are "
        "read anew each iteration [half of what is free, shared by the ranks]",
    )  # fmt: skip
    launch.add_arguments(parser)
    parser.add_argument(
        "--plan", action="store_true",
        help="do not cluster: print memory, bytes read, products and expected time, measured on a "
        "sample of the embeddings, or with --rows and --dim on random ones",
    )  # fmt: skip
    parser.add_argument(
        "--rows", type=int, metavar="N", help="with --plan: rows [those of the files]"
    )
    parser.add_argument(
        "--dim", type=int, metavar="D", help="with --plan: dimensions [those of the files]"
    )
    parser.add_argument(
        "--gpu", metavar="NAME",
        help="with --plan: each rank has such a GPU (a100, h100, …), which need not be here",
    )  # fmt: skip
    parser.add_argument(
        "--flops", type=float, metavar="F",
        help="with --plan: FLOP a second that each rank reaches in float32 products, instead of "
        "--gpu",
    )  # fmt: skip


def run(arguments: argparse.Namespace, section: Cluster) -> None:
    """Cluster the rows of all files. Raises :class:`UserError`."""
    from mlcd.cluster import initial
    from mlcd.sizes import parse_size
    from mlcd.stores import h5
    from mlcd.stores.embeddings import open_all

    if arguments.plan:
        from mlcd.cluster.plan import print_plan

        print_plan(arguments, section)
        return
    for name in ("embeddings", "output"):
        if not getattr(arguments, name):
            raise UserError(f"--{name}: needed to cluster; give it, or --plan to ask what it takes")
    files = open_all(arguments.embeddings)
    _check(files, section.k)
    text = arguments.memory_limit
    limit = parse_size(text) if text else 0
    fingerprints = [file.fingerprint for file in files]
    output = Path(arguments.output)
    # Initial centres count by their content, wherever the file lies.
    named = section
    if section.initial:
        initial.given(section.initial, section.k, files[0].d)
        section = section.model_copy(update={"initial": str(Path(section.initial).resolve())})
        named = section.model_copy(update={"initial": h5.fingerprint(section.initial)})
    identity = code_hash("cluster"), named.to_json(), fingerprints
    written = [output, output.with_name(ITERATIONS)]
    with lease.writing(output, *identity, files=written) as wanted:
        if wanted:
            folder = state_dir(output, *identity)
            _cluster(arguments, section, named, files, limit, folder)


def _cluster(
    arguments: argparse.Namespace,
    section: Cluster,
    named: Cluster,
    files: list[Embeddings],
    limit: int,
    folder: Path,
) -> None:
    """Run what `folder` does not yet hold, and write the output from it.

    `named`: the section as it stands in the output, without paths.
    """
    from mlcd.cluster import checkpoint
    from mlcd.cluster.kmeans import cluster
    from mlcd.cluster.ranks import Alone, cluster_rank
    from mlcd.neighbours import memory
    from mlcd.stores import centroids

    output = Path(arguments.output)
    fingerprints = [file.fingerprint for file in files]
    if arguments.launcher != "slurm" and arguments.nodes == arguments.ranks_per_node == 1:
        limit = limit or memory.default_limit()
        state = cluster(
            arguments.embeddings, section, limit, folder, arguments.device, arguments.threads,
            Alone(),
        )  # fmt: skip
    else:
        resources = launch.resources(arguments)
        work = {
            "embeddings": [str(file.path.resolve()) for file in files],
            "section": section.model_dump(mode="json"),
            "limit": limit or memory.default_limit() // resources.ranks_per_node,
            "folder": str(folder.resolve()),
            "device": arguments.device,
            "threads": resources.threads,
        }
        launch.run_gang(cluster_rank, work, folder, resources)
        state = checkpoint.load(folder)
        if state is None:
            shutil.rmtree(folder / "gang", ignore_errors=True)
            raise UserError(f"{folder}: holds no whole checkpoint; run the same command again")
    lines = "".join(json.dumps(record) + "\n" for record in state.records)
    write_text(output.with_name(ITERATIONS), lines)
    # Objectives of another number of centres are not to be compared with these.
    records = [record for record in state.records if record.get("phase") != "coarse"]
    centroids.write(
        output,
        centroid=state.centres,
        size=state.size,
        objective=[record["objective"] for record in records],
        empty=[record["empty"] for record in records],
        attributes={
            "model": json.dumps(files[0].model),
            "embeddings": json.dumps(fingerprints),
            "section": named.to_json(),
        },
    )
    # A finished gang must never outlive what it made: the next call would take its result.
    shutil.rmtree(folder / "gang", ignore_errors=True)
    shutil.rmtree(folder)


def _check(files: list[Embeddings], k: int) -> None:
    """Raise :class:`UserError` for what cannot work."""
    seen = set()
    for file in files:
        path = file.path.resolve()
        if path in seen:
            raise UserError(f"{file.path}: given twice in --embeddings; name each file once")
        seen.add(path)
    n = sum(file.n for file in files)
    if k > n:
        raise UserError(
            f"cluster.k: {k} clusters of {n} rows in {len(files)} files ({files[0].path} …); "
            f"at most {n} are possible"
        )
