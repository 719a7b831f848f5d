"""Two-level k-means: coarse groups, centres within each of them, then refinement over groups.

1. `coarse`: exact spherical k-means with about √K groups.
2. `within`: K centres, given to the groups by their sizes, each started from a random row of its
   group. A row is compared to the groups, then to the centres of its own group alone. A mean of
   rows of one group lies in that group (groups are convex cones), so a centre's group is simply
   its nearest one, and nothing but the centres has to be remembered between iterations.
3. `refine`: the same with several nearest groups a row, or with all K centres.

A pass costs about 2·√K products a row instead of K. Each phase is the loop of
:func:`mlcd.cluster.kmeans.run_kmeans` with its own checkpoints, so that all that holds there of
blocks, ranks, repair of empty clusters and resuming holds here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np

from mlcd.cluster import checkpoint
from mlcd.cluster.checkpoint import State
from mlcd.cluster.initial import random_rows
from mlcd.cluster.ranks import Alone
from mlcd.config.cluster import Cluster
from mlcd.neighbours.exact import ExactSearch
from mlcd.neighbours.rows import Rows
from mlcd.neighbours.two_level import TwoLevelSearch, group_count
from mlcd.progress import LOGGER

#: Rows a centre among which the first centres are drawn: enough that every group has its share.
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
    group: Alone,
) -> State:
    """Return the last state of the last phase, with the records of all phases.

    `run` is :func:`mlcd.cluster.kmeans.run_kmeans`, whose module imports this one. The state is
    saved in `folder` too, each phase's in a folder of its own below. Same rows and section give
    the same bits, as there.
    """
    records = []

    def phase(name: str, keys: dict, initial: Callable[[], np.ndarray], **search: object) -> State:
        part = section.model_copy(update=keys)
        LOGGER.info("phase %s: %d centres", name, part.k)
        home = folder / name
        if group.rank == 0:
            home.mkdir(exist_ok=True)
        more = partial(run, device=device, threads=threads, group=group, **search)
        state = more(rows, part, initial, home)
        last = part.iterations + _MORE
        # Centres that were just repaired have had no row yet: let them have some.
        while state.records[-1]["empty"] and len(state.records) < last:
            part = part.model_copy(update={"iterations": len(state.records) + 1})
            state = more(rows, part, initial, home)
        records.extend({"phase": name, **record} for record in state.records)
        return state

    count = section.groups or group_count(section.k)
    first = partial(random_rows, rows, count, section.seed)
    coarse = phase("coarse", {"k": count}, first)
    search = partial(TwoLevelSearch, groups=coarse.centres, device=device, threads=threads)
    start = partial(_first_centres, rows, coarse, section, device, threads)
    state = phase("within", {}, start, make_search=partial(search, probes=1))
    if section.refinements:
        refine = {"iterations": section.refinements}
        many = {"make_search": partial(search, probes=section.probes)} if section.probes else {}
        # A copy: the loop moves its first centres in place.
        state = phase("refine", refine, state.centres.copy, **many)
    state = State(state.centres, state.size, records)
    if group.rank == 0:
        checkpoint.save(folder, state)
    return state


def _first_centres(
    rows: Rows, coarse: State, section: Cluster, device: str, threads: int
) -> np.ndarray:
    """Return random rows of each group, as many as its share of `section.k`; float32 [K, d]."""
    rng = np.random.default_rng([section.seed, 2])
    drawn = rng.choice(rows.n, min(rows.n, DRAWN * section.k), replace=False)
    drawn.sort()
    search = ExactSearch(coarse.centres, device=device, threads=threads)
    group = np.empty(len(drawn), np.int64)
    for start in range(0, len(drawn), rows.block_rows):
        part = slice(start, start + rows.block_rows)
        group[part] = search.nearest(rows.take(drawn[part]), 1)[:, 0]
    count = np.bincount(group, minlength=len(coarse.centres))
    # Rows of a group lie together, in random order; the first of each are its centres.
    order = rng.permutation(len(drawn))
    order = order[np.argsort(group[order], kind="stable")]
    place = np.arange(len(order)) - np.repeat(np.cumsum(count) - count, count)
    chosen = order[place < np.repeat(shares(count, section.k), count)]
    return rows.take(drawn[np.sort(chosen)])


def shares(size: np.ndarray, k: int) -> np.ndarray:
    """Divide `k` among groups of `size` int64 [G] by largest remainder, ties to the lower group.

    Returns int64 [G]; no group gets more than its size if `k` is at most the sum of sizes.
    """
    given, rest = np.divmod(k * size, size.sum())
    given[np.argsort(-rest, kind="stable")[: k - int(given.sum())]] += 1
    return given
