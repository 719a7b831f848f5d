"""Stage `cluster`: spherical k-means over all embeddings, exact, streamed and resumable.

The centroids are the same bytes whatever the memory limit, the threads and the device, and after
any interruption; see :mod:`mlcd.neighbours.exact` and :mod:`mlcd.cluster.sums` for why.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from mlcd.errors import UserError
from mlcd.files import state_dir, write_text

if TYPE_CHECKING:
    from mlcd.config import Cluster
    from mlcd.stores.embeddings import Embeddings

#: Written beside the centroids: one JSON object an iteration.
ITERATIONS = "iterations.jsonl"


def add_arguments(parser: argparse._ArgumentGroup) -> None:
    """Add the stage's files and resources."""
    parser.add_argument(
        "--embeddings", nargs="+", required=True, metavar="E.h5",
        help="embeddings of all chunks: HDF5 with a dataset 'embedding' [n, d]; their order counts",
    )  # fmt: skip
    parser.add_argument(
        "--output", required=True, metavar="C.h5",
        help=f"centroids to write; {ITERATIONS} is written beside them",
    )  # fmt: skip
    parser.add_argument(
        "--memory-limit", metavar="SIZE",
        help="memory of this process besides the centres, such as 1GiB; rows that do not fit are "
        "read anew each iteration [half of what is free]",
    )  # fmt: skip
    parser.add_argument(
        "--threads", type=int, default=0, help="threads [OMP_NUM_THREADS, or all CPUs]"
    )
    parser.add_argument(
        "--device", choices=["auto", "cpu", "cuda"], default="auto",
        help="where to search; auto is cuda if faiss sees a GPU [auto]",
    )  # fmt: skip


def run(arguments: argparse.Namespace, section: Cluster) -> None:
    """Cluster the rows of all files. Raises :class:`UserError`."""
    from mlcd.cluster.initial import kmeans_plus_plus, random_rows
    from mlcd.cluster.kmeans import run_kmeans
    from mlcd.neighbours import memory
    from mlcd.neighbours.exact import search_bytes
    from mlcd.neighbours.rows import Rows
    from mlcd.stores import centroids
    from mlcd.stores.embeddings import open_all

    files = open_all(arguments.embeddings)
    n, d = _check(files, section.k)
    limit = memory.parse_size(arguments.memory_limit) if arguments.memory_limit else 0
    limit = limit or memory.default_limit()
    # Besides the centres and the blocks: the integer sums and what the search holds.
    fixed = 8 * section.k * (d + 6) + search_bytes(section.k, d)
    plan = memory.plan_blocks(limit, n, d, 1, fixed)
    rows = Rows(files, plan.rows, plan.keep)

    def initial():
        if section.init == "random":
            return random_rows(rows, section.k, section.seed)
        sample = section.init_sample * section.k
        return kmeans_plus_plus(rows, section.k, section.seed, sample, memory.bytes_left(limit))

    fingerprints = [file.fingerprint for file in files]
    output = Path(arguments.output)
    folder = state_dir(output, section.to_json(), fingerprints)
    state = run_kmeans(
        rows, section, initial, folder, device=arguments.device, threads=arguments.threads
    )
    lines = "".join(json.dumps(record) + "\n" for record in state.records)
    write_text(output.with_name(ITERATIONS), lines)
    centroids.write(
        output,
        centroid=state.centres,
        size=state.size,
        objective=[record["objective"] for record in state.records],
        empty=[record["empty"] for record in state.records],
        attributes={
            "model": json.dumps(files[0].model),
            "embeddings": json.dumps(fingerprints),
            "section": section.to_json(),
        },
    )
    shutil.rmtree(folder)


def _check(files: list[Embeddings], k: int) -> tuple[int, int]:
    """Return rows and dimension of all files. Raises :class:`UserError` for what cannot work."""
    seen = {}
    for file in files:
        path = file.path.resolve()
        if path in seen:
            raise UserError(f"{file.path}: given twice in --embeddings; name each file once")
        seen[path] = file
    n = sum(file.n for file in files)
    if k > n:
        raise UserError(
            f"cluster.k: {k} clusters of {n} rows in {len(files)} files ({files[0].path} …); "
            f"at most {n} are possible"
        )
    return n, files[0].d
