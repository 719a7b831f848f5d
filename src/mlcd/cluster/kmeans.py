"""Lloyd's iterations over streamed rows: assign, sum, move, repair, record, save."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from mlcd.cluster import checkpoint
from mlcd.cluster.checkpoint import State
from mlcd.cluster.sums import ClusterSums
from mlcd.cluster.update import move_centres, repair_empty
from mlcd.config.cluster import Cluster
from mlcd.neighbours.exact import ExactSearch
from mlcd.neighbours.rows import Rows
from mlcd.progress import LOGGER, progress


def run_kmeans(
    rows: Rows,
    section: Cluster,
    initial: Callable[[], np.ndarray],
    folder: Path | None = None,
    *,
    device: str = "cpu",
    threads: int = 0,
) -> State:
    """Return the state after the last iteration; see :class:`State`.

    `initial` makes the first centres, float32 [K, d] unit rows. With `folder`, each iteration is
    saved there and a rerun goes on from the newest whole one. Same rows, section and initial
    centres give the same bits whatever the blocks of `rows`, the device and the threads.
    """
    state = checkpoint.load(folder) if folder else None
    if state is None:
        state = State(initial(), np.zeros(section.k, np.int64), [])
    elif state.records:
        LOGGER.info("going on after iteration %d", len(state.records))
    centres, records = state.centres, state.records
    sums = ClusterSums(section.k, rows.d, rows.n)
    while len(records) < section.iterations and not _settled(records, section.tolerance):
        start = time.monotonic()
        iteration = len(records) + 1
        sums.clear()
        search = ExactSearch(centres, device=device, threads=threads)
        label = f"iteration {iteration}"
        for _, block in progress(rows.blocks(), total=len(rows), label=label, unit="block"):
            sums.add(block, search.nearest(block, 1)[:, 0])
        objective, shift, spread = move_centres(centres, sums)
        empty = repair_empty(centres, sums.size, spread, [section.seed, iteration])
        records.append(_record(iteration, objective, shift, empty, sums.size))
        state = State(centres, sums.size, records)
        if folder:
            checkpoint.save(folder, state)
        LOGGER.info(
            "iteration %d: objective %.6f, shift %.2g, %d empty, largest %d, %.1f s",
            *(iteration, objective, shift, empty, sums.size.max(), time.monotonic() - start),
        )
    return state


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
    """True if the last iteration gained less than `tolerance` of the objective.

    Never while clusters were empty: their repair costs objective first and gains it later.
    """
    if len(records) < 2 or tolerance == 0:
        return False
    before, last = records[-2:]
    if before["empty"] or last["empty"]:
        return False
    return last["objective"] - before["objective"] < tolerance * abs(before["objective"])
