"""What a clustering will take: memory, bytes read, products and time, for `mlcd cluster --plan`.

On the CPU the stage itself runs on a sample of the rows and its passes are timed. Where K is too
large for that, it runs with two smaller numbers of centers, and the time of a row is taken to grow
with the products on a straight line through both. For a GPU that is not here, its peak times a
stated efficiency is taken for the products, and what the host does a row (read, normalize, add up)
is timed here. With products of half precision the GPU also normalizes and adds up, and the host
reads.
"""

from __future__ import annotations

import dataclasses
import logging
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import faiss
import numpy as np

from mlcd.config.cluster import Cluster
from mlcd.data import hdf5
from mlcd.data.embeddings import KIND, Embeddings
from mlcd.neighbors.memory import Blocks, bytes_left, plan_blocks, resident
from mlcd.neighbors.rows import SLAB, Rows
from mlcd.neighbors.two_level import group_count
from mlcd.stages.cluster import saved_state
from mlcd.stages.cluster.group import SingleProcess
from mlcd.stages.cluster.initial import check_sample, random_rows
from mlcd.stages.cluster.kmeans import fixed_bytes, run_kmeans
from mlcd.stages.cluster.saved_state import State
from mlcd.stages.cluster.sums import ClusterSums
from mlcd.stages.cluster.two_level_search import DRAWN, two_level
from mlcd.stages.cluster.update import move_centers
from mlcd.utils.logging import LOGGER

#: Products in float32 without tensor cores, FLOP/s, by the makers' data sheets.
GPUS = {
    "v100": 15.7e12, "a100": 19.5e12, "l40s": 91.6e12, "h100": 66.9e12, "h200": 66.9e12,
}  # fmt: skip
#: Part of the peak that a search reaches: a plain assumption, not a measurement.
EFFICIENCY = 0.5
#: The same of products of half precision, whose peaks are those of mlcd.commands.plan.gpus.
HALF_EFFICIENCY = 0.6
#: Products of the longest pass over a sample, FLOP: a few seconds of one core.
_EXACT_FLOP, _TWO_LEVEL_FLOP = 2e11, 2e10
#: Rows per center in the sample at most, and passes that are timed; later ones take as long as the
#: last.
_ROWS_PER_CENTER, _PASSES = 16, 6
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
    """`passes` over all rows with `products` inner products per row among `centers` centers."""

    name: str
    passes: int
    centers: int
    products: float
    #: Products per row that run on the host even where a GPU is used.
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
    flops: float, gpu_memory: float | None = None,
) -> Plan:  # fmt: skip
    """Work out a clustering; `flops` FLOP/s per rank for products, or 0 to measure this CPU.

    `gpu_memory`: products are of half precision, on GPUs of so many bytes.

    `files` may be empty: then random rows stand for them, which no search can prune, so that the
    time is an upper bound. Raises :class:`UserError` if `limit` is too little, for the sample of
    the first centers too.
    """
    if section.init != "random" and not section.initial:
        check_sample(section, problem.n, problem.d, bytes_left(limit))
    fixed, labels = fixed_bytes(section, problem.share, problem.d, threads, problem.ranks)
    blocks = plan_blocks(limit, problem.share, problem.d, labels, fixed)
    rows = 4 * problem.d * (problem.share if blocks.keep else 3 * blocks.rows)
    parts = phases(section)
    on_gpu = gpu_memory is not None and _fits(problem, section, gpu_memory)
    keep = blocks.keep or on_gpu
    first = _first_reads(problem, section)
    passes = (1 if keep else sum(part.passes for part in parts)) + first
    half = gpu_memory is not None
    seconds = (
        _on_gpu(problem, section, parts, files, threads, flops, keep, half)
        if flops
        else _on_cpu(problem, section, parts, files, blocks, threads)
    )
    return Plan(
        memory=fixed + 4 * section.k * problem.d + rows + resident(),
        keep=keep,
        bytes_read=int(passes * problem.n * problem.d * problem.itemsize),
        flop=sum(2.0 * problem.n * problem.d * part.passes * part.products for part in parts),
        seconds=seconds,
        longest=max(seconds[part.name][1] / part.passes for part in parts),
    )


def _fits(problem: Problem, section: Cluster, memory: float) -> bool:
    """Return whether a GPU of `memory` bytes holds its rank's rows beside all else."""
    # torch takes 100 MB, and the module is light without it.
    from mlcd.neighbors.half import search_bytes

    k, d = section.k, problem.d
    # The sums, and 1.5 GB of CUDA's context. In the two-level mode rows pass through the host.
    needed = search_bytes(k, d) + 8 * k * d + problem.share * d * problem.itemsize + 1.5e9
    return section.mode == "exact" and needed <= memory


def _first_reads(problem: Problem, section: Cluster) -> float:
    """Return how many times all ranks read the rows for the first centers: slabs with a drawn row.

    Each reads those of its own part.
    """
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

    def __init__(self, files: Sequence[Embeddings], block_rows: int, keep: bool) -> None:
        super().__init__(files, block_rows, keep)
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
    #: Of each phase's passes [passes], and of moving the centers between two of them.
    passes: list[dict[str, list[float]]]
    update: list[dict[str, float]]
    #: Of reading the first centers, and of all else.
    taken: list[float]
    other: list[float]


def _on_cpu(problem: Problem, section: Cluster, parts: list[Phase], files: list[Embeddings],
            blocks: Blocks, threads: int) -> dict[str, tuple[float, float]]:  # fmt: skip
    """Return (CPU, wall) seconds by phase, from runs of the stage on samples."""
    # As many rows per center as the whole has, since that decides how many clusters are empty.
    many = min(_ROWS_PER_CENTER, problem.n / section.k)
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
            # A phase that ends with empty clusters continues, in the sample as in the whole.
            count = part.passes + max(0, len(passes) - own.passes)
            passes = (passes + [passes[-1]] * part.passes)[:count]
            update = large.update[clock].get(part.name, 0.0) * part.passes
            both.append(
                sum(passes) * factor * problem.share / large.rows
                + update * part.centers / own.centers
            )
        found[part.name] = both[0], both[1]
    # Each rank picks first centers from its rows; what else there is does not grow with them.
    reads = problem.share * _first_reads(problem, section)
    reads /= large.rows * _first_reads(dataclasses.replace(problem, n=large.rows), large.section)
    first = [large.taken[clock] * reads + large.other[clock] for clock in (1, 0)]
    return {"first centers": (first[0], first[1]), **found}


def _timed(problem: Problem, section: Cluster, files: list[Embeddings], blocks: Blocks,
           threads: int, k: int) -> _Timing:  # fmt: skip
    """Run the stage on a sample with `k` centers."""
    n = min(problem.n, int(min(_ROWS_PER_CENTER, problem.n / section.k) * k))
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
        LOGGER.info("timing %d centers of %d rows", k, n)
        # The sample's iterations are not those that the user asks about.
        level = LOGGER.level
        LOGGER.setLevel(logging.WARNING)
        group = SingleProcess()
        began = _now()
        if section.mode == "exact":
            first = partial(random_rows, rows, k, section.seed)
            state = run_kmeans(
                rows, section, first, Path(folder), device="cpu", threads=threads, group=group
            )
        else:
            state = two_level(
                rows, section, Path(folder), run_kmeans, device="cpu", threads=threads, group=group
            )
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
            threads: int, flops: float, keep: bool,
            half: bool) -> dict[str, tuple[float, float]]:  # fmt: skip
    """Return (CPU, wall) seconds by phase from `flops` and what the host does, timed here."""
    d, cores = problem.d, max(1, threads)
    faiss.omp_set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rows = Rows([_sample(files, _HOST_ROWS, d, Path(folder))], _HOST_ROWS)
        began = time.process_time()
        block = next(iter(rows.blocks()))[1]
        read = (time.process_time() - began) / len(block)
        began = time.process_time()
        next(iter(rows.stored_blocks()))
        stored = (time.process_time() - began) / len(block)
        before = _now()
        saved_state.save(Path(folder), State(block, np.zeros(len(block), np.int64), []))
        saving = np.subtract(_now(), before) / len(block)
    sums = ClusterSums(4096, d, problem.n)
    cluster = np.arange(len(block)) % 4096
    began = time.process_time()
    sums.add(block, np.arange(len(block)), cluster)
    add = (time.process_time() - began) / len(block)
    began = time.process_time()
    move_centers(block[:4096].copy(), sums)
    move = (time.process_time() - began) / 4096
    began = time.process_time()
    faiss.knn(block[:4096], block[:1024], 4, metric=faiss.METRIC_INNER_PRODUCT)
    product = (time.process_time() - began) / (4096 * 1024)
    first = read * problem.share * _first_reads(problem, section)
    found = {"first centers": (first, first)}
    unread = True
    for part in parts:
        device = 2 * d * (part.products - part.on_host) / flops
        host = part.on_host * product / cores
        on_device = half and not part.on_host
        # All rows are added once; later, those that moved.
        a_row = device + host + (0 if on_device else add)
        reads = int(unread) if keep else part.passes
        unread = False
        reading = stored if on_device else read
        # Reading continues beside the rest.
        wall = reads * max(reading, a_row) + (part.passes - reads) * a_row
        cpu = reads * reading + part.passes * (part.on_host * product + (0 if on_device else add))
        # Each rank moves its part of the centers with its cores; rank 0 saves all, beside the next
        # pass.
        mine = move / problem.ranks
        moving = part.passes * part.centers * np.array([mine / cores, mine])
        saved = part.passes * part.centers * saving
        found[part.name] = (
            problem.share * cpu + moving[1] + saved[1],
            max(problem.share * wall, saved[0]) + moving[0],
        )
    return found


def itemsize(files: list[Embeddings]) -> float:
    """Return the bytes of a value on disk, the mean over all rows of `files`; 2 without files."""
    sizes = []
    for file in files:
        with hdf5.reading(file.path, KIND, foreign=True) as opened:
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
    vectors = vectors.astype(np.float16 if itemsize(files) < 3 else np.float32)
    hdf5.write(path, KIND, {"embedding": vectors}, {})
    return Embeddings(path)
