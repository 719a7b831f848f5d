"""What a clustering will take: memory, bytes read, products and time, for `mlcd cluster --plan`.

On the CPU the stage itself runs on a sample of the rows and its passes are timed. Where K is too
large for that, it runs with two smaller numbers of centres, and the time of a row is taken to grow
with the products on a straight line through both. For a GPU that is not here, its peak times a
stated efficiency is taken for the products, and what the host does a row (read, normalise, add up)
is timed here.
"""

from __future__ import annotations

import dataclasses
import logging
import statistics
import tempfile
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

import faiss
import h5py
import numpy as np

from mlcd.cluster import checkpoint
from mlcd.cluster.checkpoint import State
from mlcd.cluster.initial import check_sample, random_rows
from mlcd.cluster.kmeans import fixed_bytes, run_kmeans
from mlcd.cluster.ranks import Alone
from mlcd.cluster.sums import ClusterSums
from mlcd.cluster.two_level import DRAWN, two_level
from mlcd.cluster.update import move_centres
from mlcd.config.cluster import Cluster
from mlcd.neighbours.memory import Blocks, bytes_left, plan_blocks, resident
from mlcd.neighbours.rows import SLAB, Rows
from mlcd.neighbours.two_level import group_count
from mlcd.progress import LOGGER
from mlcd.stores import h5
from mlcd.stores.embeddings import KIND, Embeddings

#: Products in float32 without tensor cores, FLOP/s, by the makers' data sheets.
GPUS = {
    "v100": 15.7e12, "a100": 19.5e12, "l40s": 91.6e12, "h100": 66.9e12, "h200": 66.9e12,
}  # fmt: skip
#: Part of the peak that a search reaches: a plain assumption, not a measurement.
EFFICIENCY = 0.5
#: Products of the longest pass over a sample, FLOP: a few seconds of one core.
_EXACT_FLOP, _TWO_LEVEL_FLOP = 2e11, 2e10
#: Rows a centre in the sample at most, and passes that are timed; later ones take as long as the
#: last.
_ROWS_A_CENTRE, _PASSES = 16, 6
#: Rows on which the host's work is timed.
_HOST_ROWS = 16384


@dataclasses.dataclass(frozen=True)
class Problem:
    """N rows of d dimensions of `itemsize` bytes on disk (a mean), on `ranks` processes."""

    n: int
    d: int
    itemsize: float
    ranks: int

    @property
    def share(self) -> int:
        """Rows of the rank that has most."""
        return -(-self.n // self.ranks)


@dataclasses.dataclass(frozen=True)
class Phase:
    """`passes` over all rows with `products` inner products a row among `centres` centres."""

    name: str
    passes: int
    centres: int
    products: float
    #: Products a row that run on the host even where a GPU is used.
    on_host: float = 0.0


def phases(section: Cluster) -> list[Phase]:
    """Return the phases of a clustering, each with its passes at most."""
    k = section.k
    if section.mode == "exact":
        return [Phase("exact", section.iterations, k, k)]
    count = section.groups or group_count(k)
    inside = k / count
    found = [
        Phase("coarse", section.iterations, count, count),
        Phase("within", section.iterations, k, count + inside, inside),
    ]
    if section.refinements:
        probes = min(section.probes, count)
        products = count + probes * inside if probes else k
        found.append(Phase("refine", section.refinements, k, products, probes * inside))
    return found


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a clustering takes; bytes, FLOP and seconds. `seconds` by phase, CPU and wall."""

    memory: int
    keep: bool
    bytes_read: int
    flop: float
    seconds: dict[str, tuple[float, float]]
    #: Of the longest phase's pass: a checkpoint is saved after each.
    longest: float

    @property
    def wall(self) -> float:
        """Seconds from start to end."""
        return sum(wall for _, wall in self.seconds.values())

    @property
    def cpu(self) -> float:
        """CPU seconds of one rank."""
        return sum(cpu for cpu, _ in self.seconds.values())


def plan(
    problem: Problem, section: Cluster, files: list[Embeddings], limit: int, threads: int,
    flops: float,
) -> Plan:  # fmt: skip
    """Work out a clustering; `flops` FLOP/s a rank for products, or 0 to measure this CPU.

    `files` may be empty: then random rows stand for them, which no search can prune, so that the
    time is an upper bound. Raises :class:`UserError` if `limit` is too little, for the sample of
    the first centres too.
    """
    if section.init != "random" and not section.initial:
        check_sample(section, problem.n, problem.d, bytes_left(limit))
    fixed, labels = fixed_bytes(section, problem.share, problem.d, threads)
    blocks = plan_blocks(limit, problem.share, problem.d, labels, fixed)
    rows = 4 * problem.d * (problem.share if blocks.keep else 3 * blocks.rows)
    parts = phases(section)
    first = _first_reads(problem, section)
    passes = (1 if blocks.keep else sum(part.passes for part in parts)) + first
    seconds = (
        _on_gpu(problem, section, parts, files, threads, flops, blocks.keep)
        if flops
        else _on_cpu(problem, section, parts, files, blocks, threads)
    )
    return Plan(
        memory=fixed + 4 * section.k * problem.d + rows + resident(),
        keep=blocks.keep,
        bytes_read=int(passes * problem.n * problem.d * problem.itemsize),
        flop=sum(2.0 * problem.n * problem.d * part.passes * part.products for part in parts),
        seconds=seconds,
        longest=max(seconds[part.name][1] / part.passes for part in parts),
    )


def _first_reads(problem: Problem, section: Cluster) -> float:
    """Return how many times rank 0 reads the rows for the first centres: slabs with a drawn row."""
    if section.initial:
        return 0.0
    if section.mode == "two_level":
        # Coarse ones; rows among which those within groups are drawn; these themselves.
        drawn = [section.groups or group_count(section.k), DRAWN * section.k, section.k]
    else:
        drawn = [section.k * (1 if section.init == "random" else section.init_sample)]
    return sum(min(1.0, count * SLAB / problem.n) for count in drawn)


class _Timed(Rows):
    """Rows that note when each pass begins and ends: (wall, CPU) seconds."""

    def __init__(self, *arguments: object) -> None:
        super().__init__(*arguments)
        self.marks: list[tuple[tuple[float, float], tuple[float, float]]] = []
        #: Spent on taking single rows (wall, CPU), in seconds.
        self.taken = np.zeros(2)

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        begin = _now()
        yield from super().blocks()
        self.marks.append((begin, _now()))

    def take(self, ids: np.ndarray) -> np.ndarray:
        begin = _now()
        found = super().take(ids)
        self.taken += np.subtract(_now(), begin)
        return found


def _now() -> tuple[float, float]:
    return time.perf_counter(), time.process_time()


class _Timing(NamedTuple):
    """A run of the stage on a sample of `rows`: for each clock (wall, CPU) seconds by phase."""

    rows: int
    section: Cluster
    phases: list[Phase]
    #: Of each phase's passes [passes], and of moving the centres between two of them.
    passes: list[dict[str, list[float]]]
    update: list[dict[str, float]]
    #: Of reading the first centres, and of all else.
    taken: list[float]
    other: list[float]


def _on_cpu(problem: Problem, section: Cluster, parts: list[Phase], files: list[Embeddings],
            blocks: Blocks, threads: int) -> dict[str, tuple[float, float]]:  # fmt: skip
    """Return (CPU, wall) seconds by phase, from runs of the stage on samples."""
    # As many rows a centre as the whole has, since that decides how many clusters are empty.
    many = min(_ROWS_A_CENTRE, problem.n / section.k)
    if section.mode == "exact":
        k = (_EXACT_FLOP / (2 * many * problem.d)) ** 0.5
    else:
        k = (_TWO_LEVEL_FLOP / (2 * many * problem.d * (1 + section.probes))) ** (2 / 3)
    k = max(1, min(section.k, int(k)))
    large = _timed(problem, section, files, blocks, threads, k)
    # A smaller one tells what part of a row's time grows with the products.
    small = _timed(problem, section, files, blocks, threads, k // 4) if k < section.k else None
    found = {}
    for part, own in zip(parts, large.phases, strict=True):
        both = []
        for clock in (1, 0):
            passes = large.passes[clock][part.name]
            factor = 1.0
            if small is not None:
                less = next(one for one in small.phases if one.name == part.name)
                here = statistics.mean(passes) / large.rows
                there = statistics.mean(small.passes[clock][part.name]) / small.rows
                slope = max(0.0, here - there) / (own.products - less.products)
                factor += slope * (part.products - own.products) / here
            # A phase that ends with empty clusters goes on, in the sample as in the whole.
            count = part.passes + max(0, len(passes) - own.passes)
            passes = (passes + [passes[-1]] * part.passes)[:count]
            update = large.update[clock].get(part.name, 0.0) * part.passes
            both.append(
                sum(passes) * factor * problem.share / large.rows
                + update * part.centres / own.centres
            )
        found[part.name] = both[0], both[1]
    # Rank 0 picks the first centres from all rows; what else there is does not grow with them.
    reads = problem.n * _first_reads(problem, section)
    reads /= large.rows * _first_reads(dataclasses.replace(problem, n=large.rows), large.section)
    first = [large.taken[clock] * reads + large.other[clock] for clock in (1, 0)]
    return {"first centres": (first[0], first[1]), **found}


def _timed(problem: Problem, section: Cluster, files: list[Embeddings], blocks: Blocks,
           threads: int, k: int) -> _Timing:  # fmt: skip
    """Run the stage on a sample with `k` centres."""
    n = min(problem.n, int(min(_ROWS_A_CENTRE, problem.n / section.k) * k))
    section = section.model_copy(
        update={
            "k": k,
            "groups": max(1, section.groups * k // section.k) if section.groups else 0,
            "iterations": min(section.iterations, _PASSES),
            "refinements": min(section.refinements, 2),
            "tolerance": 0.0,
            "init": "random",
            "initial": None,
        }
    )
    with tempfile.TemporaryDirectory() as folder:
        rows = _Timed([_sample(files, n, problem.d, Path(folder))], blocks.rows, blocks.keep)
        LOGGER.info("timing %d centres of %d rows", k, n)
        # The sample's iterations are not those that the user asks about.
        level = LOGGER.level
        LOGGER.setLevel(logging.WARNING)
        where = {"device": "cpu", "threads": threads, "group": Alone()}
        began = _now()
        if section.mode == "exact":
            first = partial(random_rows, rows, k, section.seed)
            state = run_kmeans(rows, section, first, Path(folder), **where)
        else:
            state = two_level(rows, section, Path(folder), run_kmeans, **where)
        ended = _now()
        LOGGER.setLevel(level)
    names = [record.get("phase", "exact") for record in state.records]
    passes, update, other = [], [], []
    for clock in (0, 1):
        lengths: dict[str, list[float]] = {}
        moving: dict[str, list[float]] = {}
        before = None
        for name, (begin, end) in zip(names, rows.marks, strict=True):
            if before is not None and before[0] == name:
                moving.setdefault(name, []).append(begin[clock] - before[1])
            lengths.setdefault(name, []).append(end[clock] - begin[clock])
            before = name, end[clock]
        spent = sum(map(sum, [*lengths.values(), *moving.values()]))
        passes.append(lengths)
        update.append({name: statistics.median(times) for name, times in moving.items()})
        other.append(max(0.0, ended[clock] - began[clock] - spent - rows.taken[clock]))
    return _Timing(n, section, phases(section), passes, update, list(rows.taken), other)


def _on_gpu(problem: Problem, section: Cluster, parts: list[Phase], files: list[Embeddings],
            threads: int, flops: float, keep: bool) -> dict[str, tuple[float, float]]:  # fmt: skip
    """Return (CPU, wall) seconds by phase from `flops` and what the host does, timed here."""
    d, cores = problem.d, max(1, threads)
    faiss.omp_set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = Rows([_sample(files, _HOST_ROWS, d, Path(folder))], _HOST_ROWS)
        began = time.process_time()
        block = next(iter(rows.blocks()))[1]
        read = (time.process_time() - began) / len(block)
        began = _now()
        checkpoint.save(Path(folder), State(block, np.zeros(len(block), np.int64), []))
        saving = np.subtract(_now(), began) / len(block)
    sums = ClusterSums(4096, d, problem.n)
    cluster = np.arange(len(block)) % 4096
    began = time.process_time()
    sums.add(block, np.arange(len(block)), cluster)
    add = (time.process_time() - began) / len(block)
    began = time.process_time()
    move_centres(block[:4096].copy(), sums)
    move = (time.process_time() - began) / 4096
    began = time.process_time()
    faiss.knn(block[:4096], block[:1024], 4, metric=faiss.METRIC_INNER_PRODUCT)
    product = (time.process_time() - began) / (4096 * 1024)
    first = read * problem.n * _first_reads(problem, section)
    found = {"first centres": (first, first)}
    unread = True
    for part in parts:
        device = 2 * d * (part.products - part.on_host) / flops
        host = part.on_host * product / cores
        # All rows are added once; later, those that moved.
        a_row = device + host + add
        reads = int(unread) if keep else part.passes
        unread = False
        # Reading goes on beside the rest.
        wall = reads * max(read, a_row) + (part.passes - reads) * a_row
        cpu = reads * read + part.passes * (part.on_host * product + add)
        # Rank 0 moves the centres as all do, and saves them.
        moving = part.passes * part.centres * (move + saving)
        found[part.name] = problem.share * cpu + moving[1], problem.share * wall + moving[0]
    return found


def itemsize(files: list[Embeddings]) -> float:
    """Return the bytes of a value on disk, the mean over all rows of `files`; 2 without files."""
    sizes = []
    for file in files:
        with h5.reading(file.path, KIND, foreign=True) as opened:
            sizes.append(opened["embedding"].dtype.itemsize * file.n)
    return sum(sizes) / sum(file.n for file in files) if files else 2.0


def _sample(files: list[Embeddings], n: int, d: int, folder: Path) -> Embeddings:
    """Write `n` rows, evenly from `files` or else random ones, to a file in `folder`."""
    if files:
        every = Rows(files, 4096)
        vectors = every.take(np.linspace(0, every.n - 1, n).astype(np.int64))
    else:
        vectors = np.random.default_rng(0).standard_normal((n, d), dtype=np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    path = folder / "sample.h5"
    with h5py.File(path, "w") as file:
        file["embedding"] = vectors.astype(np.float16 if itemsize(files) < 3 else np.float32)
    return Embeddings(path)
