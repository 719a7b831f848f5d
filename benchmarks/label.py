"""Labels per second: exact and two-level search of stage label beside faiss.knn, in one process.

    python benchmarks/label.py --k 65536 --dim 512 --top 8 --rows 8192 --repeats 3

The stage's contenders stream their rows from an HDF5 file and return labels, similarities and gaps;
faiss.knn has its rows in memory and returns labels and similarities. All take turns, one thread
each; the table gives CPU seconds, and rates over that of faiss.knn. Recall is the share of labels
that a plain float64 search gives on 256 rows, agreement what the stage itself measures.

`groups` are rows around K directions in 1,000 groups, whose spread falls with the direction as that
of images' embeddings does; `flat` are the same without that fall; `none` are random directions.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import goals
import machine
import numpy as np
import planted

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "src"))

from mlcd.config import Label
from mlcd.data import hdf5
from mlcd.data.embeddings import Embeddings
from mlcd.neighbors.rows import Rows
from mlcd.stages.label.nearest import _labels
from mlcd.stages.label.searcher import check_agreement, make_search


def data(kind: str, n: int, k: int, d: int) -> tuple[np.ndarray, np.ndarray]:
    """Return rows float32 [n, d] and centers float32 [k, d]."""
    rng = np.random.default_rng(0)
    if kind == "none":
        rows, centers = (rng.standard_normal((m, d), dtype=np.float32) for m in (n, k))
        return planted.unit(rows), planted.unit(centers)
    centers = planted.directions(rng, d, wide=1000, narrow=k)
    rows = planted.around(rng, centers, n, planted.ROW)
    if kind == "groups":
        fall = np.arange(1, d + 1, dtype=np.float32) ** -0.5
        rows, centers = planted.unit(rows * fall), planted.unit(centers * fall)
    return rows, centers


def plain(rows: np.ndarray, centers: np.ndarray, l: int) -> np.ndarray:
    """Return the `l` nearest in float64, ties by lower id."""
    scores = rows.astype(np.float64) @ centers.T.astype(np.float64)
    return np.argsort(-np.round(scores, 13), axis=1, kind="stable")[:, :l]


def timed(
    calls: dict[str, Callable[[], object]], repeats: int
) -> dict[str, list[tuple[float, float]]]:
    """Return wall and CPU seconds of each call, as often as it was repeated; they take turns."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter(), time.process_time()
            call()
            end = time.perf_counter(), time.process_time()
            times[name].append((end[0] - start[0], end[1] - start[1]))
    return times


def measure(kind: str, arguments: argparse.Namespace) -> None:
    """Print the table of one kind of data."""
    n, k, d, l = arguments.rows, arguments.k, arguments.dim, arguments.top
    rows, centers = data(kind, n, k, d)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "e.h5"
        hdf5.write(path, "embeddings", {"embedding": rows.astype(np.float16)}, {"model": "{}"})
        stream = Rows([Embeddings(path)], 8192)
        rows = np.concatenate([block for _, block in stream.blocks()])
        where = {"device": "cpu", "threads": 1}
        calls: dict[str, Callable[[], object]] = {}

        def library() -> object:
            return faiss.knn(rows, centers, l, metric=faiss.METRIC_INNER_PRODUCT)

        calls["faiss.knn"] = library
        found, notes = {}, {}
        sections = {"exact": Label(top=l)}
        for probes in arguments.probes:
            name = f"two_level, {probes} of {int(k**0.5)} groups"
            sections[name] = Label(top=l, mode="two_level", probes=probes, min_agreement=0)
        for name, section in sections.items():
            start = time.process_time()
            search = make_search(centers, section, rows=n, allow_integers=True, **where)
            share, _ = check_agreement(search, stream, section, **where)

            def ours(search=search, section=section) -> list[object]:
                return [_labels(search, block, section) for _, block in stream.blocks()]

            first = ours()
            found[name] = np.concatenate([part[0] for part in first])
            notes[name] = f"{share:.4f}"
            print(f"{name}: first pass with preparation {time.process_time() - start:.1f} CPU s")
            calls[name] = ours
        times = timed(calls, arguments.repeats)
        wanted = plain(rows[:256], centers, l)
        found["faiss.knn"] = library()[1]
    print(f"\n{kind}: {n:,} rows, K = {k:,}, d = {d}, l = {l}\n")
    print("| | CPU s: median (least to greatest) | rate, CPU | goal | recall | agreement |")
    print("|---|---:|---:|---:|---:|---:|")
    peer = statistics.median(cpu for _, cpu in times["faiss.knn"])
    for name, pairs in times.items():
        cpu = [seconds for _, seconds in pairs]
        hits = (found[name][:256, :, None] == wanted[:, None, :]).any(axis=1).mean()
        print(
            f"| {name} | {statistics.median(cpu):.2f} ({min(cpu):.2f} to {max(cpu):.2f}) | "
            f"{peer / statistics.median(cpu):.2f} × | {'≥ 1.0 ×' if name == 'exact' else ''} | "
            f"{hits:.4f} | {notes.get(name, '')} |",
            flush=True,
        )
    ours, peers = ([cpu for _, cpu in times[name]] for name in ("exact", "faiss.knn"))
    goals.state(f"labels, {kind}, K = {k:,}, d = {d}", ours, {"faiss.knn": peers}, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--k", type=int, default=65536)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--top", type=int, default=8)
    parser.add_argument("--probes", type=int, nargs="*", default=[4, 16])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--data", nargs="+", default=["groups", "flat", "none"])
    arguments = parser.parse_args()
    faiss.omp_set_num_threads(1)
    print(machine.description())
    for kind in arguments.data:
        measure(kind, arguments)


if __name__ == "__main__":
    main()
