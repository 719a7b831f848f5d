"""Lloyd's iterations over streamed rows: assign, sum, move, repair, record, save."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mlcd.cluster import checkpoint
from mlcd.cluster.assign import Assignment, Search, assignment_bytes
from mlcd.cluster.checkpoint import State
from mlcd.cluster.initial import from_sample, given, random_rows
from mlcd.cluster.ranks import Alone
from mlcd.cluster.sums import ClusterSums
from mlcd.cluster.two_level import two_level
from mlcd.cluster.update import move_centres, repair_empty
from mlcd.config.cluster import Cluster
from mlcd.neighbours import memory
from mlcd.neighbours.exact import SPARE, search_bytes
from mlcd.neighbours.rows import Rows
from mlcd.neighbours.two_level import group_count
from mlcd.neighbours.two_level import search_bytes as two_level_bytes
from mlcd.progress import LOGGER, progress
from mlcd.stores.embeddings import open_all


def cluster(
    embeddings: Sequence[str], section: Cluster, limit: int, folder: Path, device: str,
    threads: int, group: Alone,
) -> State:  # fmt: skip
    """Cluster the files `embeddings` within `limit` bytes; see :func:`run_kmeans`."""
    files = open_all(embeddings)
    n, d = sum(file.n for file in files), files[0].d
    share = -(-n // group.size)
    fixed, labels = fixed_bytes(section, share, d, threads)
    plan = group.agree(lambda: memory.plan_blocks(limit, share, d, labels, fixed))
    rows = Rows(files, plan.rows, plan.keep, part=(group.rank, group.size))
    if section.mode == "two_level":
        return two_level(
            rows, section, folder, run_kmeans, device=device, threads=threads, group=group
        )

    def initial() -> np.ndarray:
        if section.initial:
            return given(section.initial, section.k, rows.d)
        if section.init == "random":
            return random_rows(rows, section.k, section.seed)
        return from_sample(rows, section, memory.bytes_left(limit))

    return run_kmeans(rows, section, initial, folder, device=device, threads=threads, group=group)


def fixed_bytes(section: Cluster, n: int, d: int, threads: int) -> tuple[int, int]:
    """Return the bytes that a rank with `n` rows needs besides centres and blocks.

    And how many candidates its search keeps a row.
    """
    # The integer sums, what the search holds, and what is remembered of each row.
    fixed = 8 * section.k * (d + 6) + search_bytes(section.k, d)
    fixed += assignment_bytes(section.k, n, d, threads)
    if section.mode == "exact":
        return fixed, 1
    # The centres of the phase before are held too.
    fixed += two_level_bytes(section.k, d) + 4 * section.k * d
    groups = section.groups or group_count(section.k)
    return fixed, min(max(1, section.probes), groups) * (1 + SPARE)


def run_kmeans(
    rows: Rows,
    section: Cluster,
    initial: Callable[[], np.ndarray],
    folder: Path | None = None,
    *,
    device: str = "cpu",
    threads: int = 0,
    group: Alone | None = None,
    make_search: Callable[[np.ndarray], Search] | None = None,
) -> State:
    """Return the state after the last iteration; see :class:`State`.

    `initial` makes the first centres, float32 [K, d] unit rows. With `folder`, each iteration is
    saved there and a rerun goes on from the newest whole one. In a `group` of ranks each gives its
    part of the rows. `make_search` makes the search among the centres of an iteration [an exact
    one on `device` with `threads`]. Same rows, section and initial centres give the same bits
    whatever the blocks and parts of `rows`, the device and the threads.
    """
    group = group or Alone()
    assignment = Assignment(
        *rows.share, device=device, threads=threads, make_search=make_search
    )  # fmt: skip

    def start() -> State:
        state = checkpoint.load(folder) if folder else None
        if state is None:
            return State(initial(), np.zeros(section.k, np.int64), [])
        LOGGER.info("going on after iteration %d", len(state.records))
        return state

    state = group.share(start)
    centres, records = state.centres, state.records
    sums = ClusterSums(section.k, rows.d, rows.n)
    moved = None
    while len(records) < section.iterations and not _settled(records, section.tolerance):
        began = time.monotonic()
        iteration = len(records) + 1
        if group.rank or moved is None:
            # Later passes change the sums of all ranks by what moved: rank 0 brings them along.
            sums.clear()
        assignment.start(centres, moved)
        group.agree(partial(_assign, rows, assignment, sums, f"iteration {iteration}"))
        group.add_up(sums)
        objective, shifts, spread = move_centres(centres, sums)
        moved, shift = shifts > 0, float(shifts.mean())
        empty = repair_empty(centres, sums.size, spread, [section.seed, iteration], moved)
        records.append(_record(iteration, objective, shift, empty, sums.size))
        state = State(centres, sums.size, records)
        if folder and group.rank == 0:
            checkpoint.save(folder, state)
        LOGGER.info(
            "iteration %d: objective %.6f, shift %.2g, %d empty, largest %d, %.1f s",
            *(iteration, objective, shift, empty, sums.size.max(), time.monotonic() - began),
        )
    return state


def _assign(rows: Rows, assignment: Assignment, sums: ClusterSums, label: str) -> None:
    """Bring every row into the sums of its nearest centre and out of those of its last one."""
    for start, block in progress(rows.blocks(), total=len(rows), label=label, unit="block"):
        nearest, last = assignment.nearest(start, block)
        changed = np.flatnonzero(nearest != last)
        sums.add(block, changed, nearest[changed])
        changed = changed[last[changed] >= 0]
        sums.add(block, changed, last[changed], sign=-1)


def _record(
    iteration: int, objective: float, shift: float, empty: int, size: np.ndarray
) -> dict[str, Any]:
    """Return the line of iterations.jsonl, described in docs/formats.md.

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
    """True if the last iteration moved no centre, or gained less than `tolerance` of the objective.

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
    return last["objective"] - before["objective"] < tolerance * abs(before["objective"])
