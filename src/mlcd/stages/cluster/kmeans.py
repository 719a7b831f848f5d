"""Lloyd's iterations over streamed rows: assign, sum, move, repair, record, save."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from mlcd.config.cluster import Cluster
from mlcd.data.embeddings import open_all
from mlcd.neighbors import memory
from mlcd.neighbors.engine import engine
from mlcd.neighbors.exact import SPARE, search_bytes
from mlcd.neighbors.rows import Rows
from mlcd.neighbors.two_level import group_count
from mlcd.neighbors.two_level import search_bytes as two_level_bytes
from mlcd.stages.cluster import saved_state
from mlcd.stages.cluster.assign import Assignment, Search, assignment_bytes
from mlcd.stages.cluster.group import Group, SingleProcess
from mlcd.stages.cluster.initial import from_sample, given, random_rows
from mlcd.stages.cluster.saved_state import Saver, State
from mlcd.stages.cluster.sums import ClusterSums, Sums
from mlcd.stages.cluster.two_level_search import two_level
from mlcd.stages.cluster.update import move_centers, repair_empty
from mlcd.utils.logging import LOGGER, progress


def cluster(
    embeddings: Sequence[str], section: Cluster, limit: int, folder: Path, device: str,
    threads: int, group: Group,
) -> State:  # fmt: skip
    """Cluster the files `embeddings` within `limit` bytes; see :func:`run_kmeans`."""
    files = open_all(embeddings)
    n, d = sum(file.n for file in files), files[0].d
    share = -(-n // group.size)
    fixed, labels = fixed_bytes(section, share, d, threads, group.size)
    plan, integers = group.agree(lambda: memory.plan_with_integers(limit, share, d, labels, fixed))
    rows = Rows(files, plan.rows, plan.keep, part=(group.rank, group.size))
    if section.mode == "two_level":
        return two_level(
            rows, section, folder, run_kmeans, device=device, threads=threads, group=group
        )

    def initial() -> np.ndarray | None:
        if section.initial:
            path = section.initial
            return group.agree(lambda: given(path, section.k, rows.d) if not group.rank else None)
        if section.init == "random":
            return random_rows(rows, section.k, section.seed, group)
        return from_sample(rows, section, memory.bytes_left(limit), group)

    return run_kmeans(
        rows, section, initial, folder, device=device, threads=threads, group=group,
        allow_integers=integers,
    )  # fmt: skip


def fixed_bytes(section: Cluster, n: int, d: int, threads: int, ranks: int = 1) -> tuple[int, int]:
    """Return the bytes that a rank of `ranks` with `n` rows needs besides centers and blocks.

    And how many candidates its search keeps a row.
    """
    # The integer sums, what the search holds, and what is remembered of each row.
    fixed = 8 * section.k * (d + 6) + search_bytes(section.k, d)
    fixed += assignment_bytes(section.k, n, d, threads)
    if ranks > 1:
        # The sums of all ranks, for the part of the clusters that this one moves.
        fixed += 8 * -(-section.k // ranks) * d
    if section.mode == "exact":
        return fixed, 1
    # The centers of the phase before are held too.
    fixed += two_level_bytes(section.k, d) + 4 * section.k * d
    groups = section.groups or group_count(section.k)
    return fixed, min(max(1, section.probes), groups) * (1 + SPARE)


def run_kmeans(
    rows: Rows,
    section: Cluster,
    initial: Callable[[], np.ndarray | None],
    folder: Path | None = None,
    *,
    device: str = "cpu",
    threads: int = 0,
    group: Group | None = None,
    make_search: Callable[[np.ndarray], Search] | None = None,
    allow_integers: bool = False,
) -> State:
    """Return the state after the last iteration; see :class:`State`.

    `initial`, called on all ranks, makes the first centers on rank 0: float32 [K, d] unit rows.
    With `folder`, each iteration is saved there and a rerun resumes from the newest whole one. In
    a `group` of ranks each gives its part of the rows. `allow_integers`: there is memory for the
    library of integer products. `make_search` makes the search among the
    centers of an iteration [an exact one on `device` with `threads`]. Same rows, section and first
    centers give the same bits whatever the blocks and parts of `rows`, the device and the threads.
    """
    group = group or SingleProcess()
    state = group.share(lambda: saved_state.load(folder) if folder else None)
    if state is None:
        first = initial()
        state = group.share(lambda: _first_state(first))
        assert state is not None, "rank 0 has made it"
    else:
        LOGGER.info("resuming after iteration %d", len(state.records))
    centers, records = state.centers, state.records
    # Each rank's sums are those of its own rows, which later passes change by what moved.
    passes = _passes(
        rows, section.k, device, threads, make_search,
        section.iterations - len(records), allow_integers,
    )  # fmt: skip
    shifts = None
    with Saver(folder if group.rank == 0 else None) as saver:
        while len(records) < section.iterations and not _settled(records, section.tolerance):
            began = time.monotonic()
            iteration = len(records) + 1
            label = f"iteration {iteration}"
            group.agree(partial(passes.run, centers, shifts, label))
            # Before the centers that are being saved move.
            group.agree(saver.wait)
            found = move_centers(centers, passes.sums, group, threads=threads)
            shifts, shift, size = found.shift, float(found.shift.mean()), found.size
            repaired = np.zeros(section.k, bool)
            empty = repair_empty(centers, size, found.spread, [section.seed, iteration], repaired)
            # Two unit vectors are no farther apart.
            shifts[repaired] = 2
            records.append(_record(iteration, found.objective, shift, empty, size))
            # A copy of what the next pass changes.
            state = State(centers, size.copy(), records)
            saver.save(state)
            LOGGER.info(
                "iteration %d: objective %.6f, shift %.2g, %d empty, largest %d, %.1f s",
                *(iteration, found.objective, shift, empty, size.max(), time.monotonic() - began),
            )
        group.agree(saver.wait)
    return state


def _first_state(centers: np.ndarray | None) -> State | None:
    return None if centers is None else State(centers, np.zeros(len(centers), np.int64), [])


class Passes(Protocol):
    """What brings all rows of this rank into `sums`, pass after pass."""

    @property
    def sums(self) -> Sums: ...

    def run(self, centers: np.ndarray, shifts: np.ndarray | None, label: str) -> None:
        """Bring every row into the sums of its nearest center and out of those of its last one.

        `shifts` float [K]: how far `centers` are from those of the last pass, 0 only where no bit
        has changed [any].
        """


def _passes(
    rows: Rows, k: int, device: str, threads: int,
    make_search: Callable[[np.ndarray], Search] | None, count: int, allow_integers: bool,
) -> Passes:  # fmt: skip
    """Return passes on a device where `device` asks for products of half precision."""
    where = engine(device)
    if where.half and make_search is None:
        # torch takes 100 MB, which a search by faiss has better use for.
        from mlcd.stages.cluster.device_pass import DevicePass

        return DevicePass(rows, k, where)
    return HostPass(rows, k, device, threads, make_search, count, allow_integers)


class HostPass:
    """Passes that read rows and add them up in main memory, with any search."""

    def __init__(
        self, rows: Rows, k: int, device: str, threads: int,
        make_search: Callable[[np.ndarray], Search] | None, passes: int, allow_integers: bool,
    ) -> None:  # fmt: skip
        self._rows = rows
        self.sums = ClusterSums(k, rows.d, rows.n)
        self._assignment = Assignment(
            *rows.share, device=device, threads=threads, make_search=make_search, passes=passes,
            allow_integers=allow_integers,
        )  # fmt: skip

    def run(self, centers: np.ndarray, shifts: np.ndarray | None, label: str) -> None:
        """Do what :class:`Passes` says. Raises :class:`UserError` for unusable rows."""
        self._assignment.start(centers, shifts)
        _assign(self._rows, self._assignment, self.sums, label)


def _assign(rows: Rows, assignment: Assignment, sums: ClusterSums, label: str) -> None:
    """Bring every row into the sums of its nearest center and out of those of its last one."""
    for start, block in progress(rows.blocks(), total=len(rows), label=label, unit="block"):
        nearest, last = assignment.nearest(start, block)
        changed = np.flatnonzero(nearest != last)
        sums.add(block, changed, nearest[changed])
        changed = changed[last[changed] >= 0]
        sums.add(block, changed, last[changed], sign=-1)


def _record(
    iteration: int, objective: float, shift: float, empty: int, size: np.ndarray
) -> dict[str, Any]:
    """Return the line of iterations.jsonl, described in docs/reference/formats.md.

    `imbalance` is K·Σ size² / N², 1 for equal sizes (as faiss defines it).
    """
    share = size / size.sum()
    return {
        "iteration": iteration,
        "objective": objective,
        "shift": shift,
        "empty": empty,
        "largest": int(size.max()),
        "imbalance": float(len(size) * (share * share).sum()),
    }


def _settled(records: list[dict[str, Any]], tolerance: float) -> bool:
    """True if the last iteration moved no center, or gained less than `tolerance` of the objective.

    Never while clusters were empty: their repair costs objective first and gains it later.
    """
    if records and records[-1]["shift"] == 0 and not records[-1]["empty"]:
        # A fixed point: every further iteration would repeat this one.
        return True
    if len(records) < 2 or tolerance == 0:
        return False
    before, last = records[-2:]
    if before["empty"] or last["empty"]:
        return False
    gain: float = last["objective"] - before["objective"]
    least: float = tolerance * abs(before["objective"])
    return gain < least
