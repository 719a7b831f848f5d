"""Two-level k-means: coarse groups, centers within each of them, then refinement over groups.

1. `coarse`: exact spherical k-means with about √K groups.
2. `within`: K centers, given to the groups by their sizes, each started from a random row of its
   group. A row is compared to the groups, then to the centers of its own group alone. A mean of
   rows of one group lies in that group (groups are convex cones), so a center's group is simply
   its nearest one, and nothing but the centers has to be remembered between iterations.
3. `refine`: the same with several nearest groups per row, or with all K centers.

A pass costs about 2·√K products per row instead of K. Each phase is the loop of
:func:`mlcd.stages.cluster.kmeans.run_kmeans` with its own checkpoints, so that all that holds there
of blocks, ranks, repair of empty clusters and resuming holds here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from mlcd.config.cluster import Cluster
from mlcd.neighbors.exact import ExactSearch
from mlcd.neighbors.rows import Rows
from mlcd.neighbors.two_level import TwoLevelSearch, group_count
from mlcd.stages.cluster import saved_state
from mlcd.stages.cluster.group import Group, take
from mlcd.stages.cluster.initial import random_rows
from mlcd.stages.cluster.saved_state import State
from mlcd.utils.logging import LOGGER

#: Rows per center among which the first centers are drawn: enough that every group has its share.
DRAWN = 4
#: Iterations more at most, where the last one of a phase still found empty clusters.
_MORE = 3


def two_level(
    rows: Rows,
    section: Cluster,
    folder: Path,
    run: Callable[..., State],
    *,
    device: str,
    threads: int,
    group: Group,
) -> State:
    """Return the last state of the last phase, with the records of all phases.

    `run` is :func:`mlcd.stages.cluster.kmeans.run_kmeans`, whose module imports this one. The state
    is saved in `folder` too, each phase's in a folder of its own below. Same rows and section give
    the same bits, as there.
    """
    records: list[dict[str, Any]] = []

    def phase(
        name: str, keys: dict[str, int], initial: Callable[[], np.ndarray | None], **search: object
    ) -> State:
        part = section.model_copy(update=keys)
        LOGGER.info("phase %s: %d centers", name, part.k)
        home = folder / name
        if group.rank == 0:
            home.mkdir(exist_ok=True)
        more = partial(run, device=device, threads=threads, group=group, **search)
        state = more(rows, part, initial, home)
        last = part.iterations + _MORE
        # Centers that were just repaired have had no row yet: let them have some.
        while state.records[-1]["empty"] and len(state.records) < last:
            part = part.model_copy(update={"iterations": len(state.records) + 1})
            state = more(rows, part, initial, home)
        records.extend({"phase": name, **record} for record in state.records)
        return state

    count = section.groups or group_count(section.k)
    first = partial(random_rows, rows, count, section.seed, group)
    coarse = phase("coarse", {"k": count}, first)
    search = partial(TwoLevelSearch, groups=coarse.centers, device=device, threads=threads)
    start = partial(_first_centers, rows, coarse, section, device, threads, group)
    state = phase("within", {}, start, make_search=partial(search, probes=1))
    if section.refinements:
        refine = {"iterations": section.refinements}
        many = {"make_search": partial(search, probes=section.probes)} if section.probes else {}
        # A copy: the loop moves its first centers in place.
        state = phase("refine", refine, state.centers.copy, **many)
    state = State(state.centers, state.size, records)
    if group.rank == 0:
        saved_state.save(folder, state)
    return state


def _first_centers(
    rows: Rows, coarse: State, section: Cluster, device: str, threads: int, ranks: Group
) -> np.ndarray | None:
    """Return random rows of each group, as many as its share of `section.k`; float32 [K, d].

    On rank 0; None elsewhere.
    """
    rng = np.random.default_rng([section.seed, 2])
    drawn = rng.choice(rows.n, min(rows.n, DRAWN * section.k), replace=False)
    drawn.sort()
    mine = ranks.agree(lambda: _groups_of(rows, drawn, coarse, device, threads))
    every = ranks.collect(mine)
    group = np.empty(len(drawn), np.int64) if every is None else every
    ranks.spread(group)
    count = np.bincount(group, minlength=len(coarse.centers))
    # Rows of a group lie together, in random order; the first of each are its centers.
    order = rng.permutation(len(drawn))
    order = order[np.argsort(group[order], kind="stable")]
    place = np.arange(len(order)) - np.repeat(np.cumsum(count) - count, count)
    chosen = order[place < np.repeat(shares(count, section.k), count)]
    return take(rows, drawn[np.sort(chosen)], ranks)


def _groups_of(
    rows: Rows, drawn: np.ndarray, coarse: State, device: str, threads: int
) -> np.ndarray:
    """Return the nearest groups of those rows of `drawn` (rising) that this rank reads, int64."""
    first, count = rows.share
    drawn = drawn[np.searchsorted(drawn, first) : np.searchsorted(drawn, first + count)]
    search = ExactSearch(coarse.centers, device=device, threads=threads)
    group = np.empty(len(drawn), np.int64)
    for start in range(0, len(drawn), rows.block_rows):
        part = slice(start, start + rows.block_rows)
        group[part] = search.nearest(rows.take(drawn[part]), 1)[:, 0]
    return group


def shares(size: np.ndarray, k: int) -> np.ndarray:
    """Divide `k` among groups of `size` int64 [G] by largest remainder, ties to the lower group.

    Returns int64 [G]; no group gets more than its size if `k` is at most the sum of sizes.
    """
    given, rest = np.divmod(k * size, size.sum())
    given[np.argsort(-rest, kind="stable")[: k - int(given.sum())]] += 1
    return given
