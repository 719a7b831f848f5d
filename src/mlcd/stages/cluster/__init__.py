"""Stage `cluster`: spherical k-means over all embeddings, streamed and resumable.

The centroids are the same bytes whatever the memory limit, the threads and the device, and after
any interruption; see :mod:`mlcd.neighbors.exact` and :mod:`mlcd.stages.cluster.sums` for why. That
holds in both modes: each row compared to all centers, or
:mod:`mlcd.stages.cluster.two_level_search`.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from mlcd.launch import lease, options, resume
from mlcd.launch.gang_files import gang_folder
from mlcd.utils.errors import UserError
from mlcd.utils.files import state_dir, write_text
from mlcd.utils.fingerprint import code_hash
from mlcd.utils.ownership import claim

if TYPE_CHECKING:
    from mlcd.config import Cluster
    from mlcd.data.embeddings import Embeddings
    from mlcd.stages.cluster.saved_state import State

#: Written beside the centroids: one JSON object per iteration.
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
        help="memory of each rank besides the centers, such as 1GiB; rows that do not fit are "
        "read anew each iteration [half of what is free, shared by the ranks]",
    )  # fmt: skip
    options.add_arguments(parser)
    options.add_products(parser)
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
        help="with --plan: FLOP per second that each rank reaches in its products, instead of the "
        "--gpu's; of float32, or of those that --products names",
    )  # fmt: skip


def run(arguments: argparse.Namespace, section: Cluster) -> None:
    """Cluster the rows of all files. Raises :class:`UserError`."""
    from mlcd.data import hdf5
    from mlcd.data.embeddings import open_all
    from mlcd.stages.cluster import initial
    from mlcd.utils.units import parse_size

    for name in ("output",) if section.centers else ("embeddings", "output"):
        if not getattr(arguments, name):
            raise UserError(f"--{name}: needed to cluster; give it, or --plan to ask what it takes")
    claim(arguments.output, Path(arguments.output).with_name(ITERATIONS))
    if section.centers:
        from mlcd.stages.cluster.fixed import keep

        output = Path(arguments.output)
        keep(section, output, output.with_name(ITERATIONS))
        return
    files = open_all(arguments.embeddings)
    _check(files, section.k)
    text = arguments.memory_limit
    limit = parse_size(text) if text else 0
    fingerprints = [file.fingerprint for file in files]
    output = Path(arguments.output)
    # Initial centers count by their content, wherever the file lies.
    named = section
    if section.initial:
        initial.given(section.initial, section.k, files[0].d)
        path = str(Path(section.initial).resolve())
        section = section.model_copy(update={"initial": path})
        named = section.model_copy(update={"initial": hdf5.fingerprint(path)})
    # The code is no part of it: mlcd.launch.resume sees to what other code has saved.
    identity = named.to_json(), fingerprints
    written = [output, output.with_name(ITERATIONS)]
    with lease.writing(output, code_hash("cluster"), *identity, files=written) as wanted:
        if wanted:
            folder = state_dir(output, *identity)
            home, end_other = gang_folder(output), arguments.end_other
            resume.claim(folder, "cluster", output, home, end_other=end_other)
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
    from mlcd.launch.api import run_gang
    from mlcd.neighbors import memory
    from mlcd.stages.cluster import saved_state
    from mlcd.stages.cluster.rank import cluster_alone, cluster_rank

    output = Path(arguments.output)
    home = gang_folder(output)
    resources = options.resources(arguments)
    rank = cluster_rank
    if resources.launcher != "slurm" and resources.ranks == 1:
        # No process group, and no other process.
        rank, resources = cluster_alone, dataclasses.replace(resources, launcher="inline")
    run_gang(
        rank,
        {
            "embeddings": [str(file.path.resolve()) for file in files],
            "section": section.model_dump(mode="json"),
            "limit": limit or memory.default_limit() // resources.ranks_per_node,
            "folder": str(folder.resolve()),
            "device": options.search_place(arguments),
            "threads": resources.threads,
        },
        home,
        resources,
        stage="cluster",
        # The state folder is named by a hash of all else that decides the result.
        work=f"{code_hash('cluster')} {folder.name}",
        progress=lambda: sorted(path.name for path in folder.rglob("iteration-*.h5")),
    )
    loaded = saved_state.load(folder)
    if loaded is None:
        shutil.rmtree(home, ignore_errors=True)
        raise UserError(f"{folder}: holds no whole checkpoint; run the same command again")
    _write(loaded, named, files, folder, output)
    resume.finish(folder)
    # A finished gang must never outlive what it made: the next call would take its result.
    shutil.rmtree(home, ignore_errors=True)
    resume.remove(folder)


def _write(
    state: State, named: Cluster, files: list[Embeddings], folder: Path, output: Path
) -> None:
    """Write the centroids of the last `state` and the records of its iterations."""
    import numpy as np

    from mlcd.data import centroids

    lines = "".join(json.dumps(record) + "\n" for record in state.records)
    write_text(output.with_name(ITERATIONS), lines)
    # Objectives of another number of centers are not to be compared with these.
    records = [record for record in state.records if record.get("phase") != "coarse"]
    attributes = {
        "model": json.dumps(files[0].model),
        "embeddings": json.dumps([file.fingerprint for file in files]),
        "section": named.to_json(),
    }
    if changes := resume.accepted(folder):
        attributes["accepted_code"] = json.dumps(changes)
    centroids.write(
        output,
        centroid=state.centers,
        size=state.size,
        objective=np.array([record["objective"] for record in records], np.float64),
        empty=np.array([record["empty"] for record in records], np.int64),
        attributes=attributes,
    )


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
