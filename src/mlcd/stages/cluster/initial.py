"""Initial centers: distinct random rows, k-means++ or AFK-MC² on a sample of rows, or given ones.

All are a function of the rows and the seed alone, not of files, blocks or threads.
"""

from __future__ import annotations

import numpy as np

from mlcd.config.cluster import Cluster
from mlcd.data.centroids import unit_rows
from mlcd.data.own.arrays import open_array
from mlcd.data.own.base import CENTROID
from mlcd.neighbors.exact import ExactSearch
from mlcd.neighbors.pairs import dots, error_bound
from mlcd.neighbors.rows import Rows
from mlcd.stages.cluster.group import Group, SingleProcess, take
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER
from mlcd.utils.units import whole_mebibytes

#: Candidates drawn at once by k-means++ once many centers stand.
_MOST_CANDIDATES = 64
#: 1 − cosine below which two rows count as copies: float32 tells nothing finer apart.
_COPY = 1e-6
#: To draw more than one in so many, numpy lists the numbers of all.
_SPARSE = 50


def random_rows(rows: Rows, k: int, seed: int, group: Group | None = None) -> np.ndarray | None:
    """Return `k` rows of distinct numbers, drawn uniformly; float32 [k, d].

    On rank 0 of `group` [this process alone], whose ranks read their parts of them; None elsewhere.
    """
    return take(rows, _sample(rows.n, k, seed), group or SingleProcess())


def given(path: str, k: int, d: int) -> np.ndarray:
    """Return the centers of a file (HDF5 with a dataset `centroid`, .npy) as unit rows [k, d].

    float32. Raises :class:`UserError` with the file's name if it is damaged or does not fit.
    """
    found = open_array(path, CENTROID)
    if (found.rows, found.width) != (k, d):
        raise UserError(
            f"{path}: expected centers [{k}, {d}], found [{found.rows}, {found.width}]; "
            "cluster.initial needs K centers of the embeddings' dimension"
        )
    return unit_rows(found, 0, k)


def from_sample(
    rows: Rows, section: Cluster, room: int, group: Group | None = None
) -> np.ndarray | None:
    """Return K centers chosen by `section.init` from a uniform sample of rows; float32 [K, d].

    On rank 0 of `group` [this process alone], whose ranks read their parts of the sample; None
    elsewhere. The sample must fit in `room` bytes, or :class:`UserError` is raised: a smaller
    sample would silently give another result.
    """
    group = group or SingleProcess()
    k, seed = section.k, section.seed
    m = group.agree(lambda: check_sample(section, rows.n, rows.d, room))
    LOGGER.info("%s on %d of %d rows", section.init, m, rows.n)
    points = take(rows, _sample(rows.n, m, seed), group)
    if points is None:
        return None
    rng = np.random.default_rng([seed, 1])
    if section.init == "afkmc2":
        chosen = choose_by_chains(points, k, section.init_chain, rng)
    else:
        chosen = choose(points, k, rng)
    centers: np.ndarray = points[chosen]
    return centers


def check_sample(section: Cluster, n: int, d: int, room: int) -> int:
    """Return how many of `n` rows of `d` dimensions :func:`from_sample` draws.

    Raises :class:`UserError` if they do not fit in `room` bytes.
    """
    k = section.k
    m = min(n, section.init_sample * k)
    # The rows, their similarities to the candidates (twice while compared), distances, numbers.
    need = m * (4 * d + 8 * _MOST_CANDIDATES + 64)
    if section.init == "afkmc2":
        # The centers so far and the rows of a batch of chains, too.
        need = m * (4 * d + 64)
        need += 4 * d * (k + 2 * _MOST_CANDIDATES * section.init_chain)
    if m > n // _SPARSE:
        need += 8 * n
    if need > room:
        raise UserError(
            f"cluster.init: {section.init} holds {m} rows in {whole_mebibytes(need)}, more than "
            "--memory-limit allows; raise it, lower cluster.init_sample, or use init random"
        )
    return m


def choose(points: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Choose `k` of the unit rows `points` float32 [m, d] by k-means++; return ids int64 [k].

    Arthur and Vassilvitskii, *k-means++: the advantages of careful seeding* (2007): each next
    center is a row drawn with probability proportional to its squared distance, here 2 − 2·cosine,
    to the nearest center so far. Several candidates are drawn at once from the distances as they
    were, so that one matrix product serves them all, and each is then accepted with probability
    (distance now) / (distance then). Distances only shrink, so this rejection sampling draws from
    the very same distribution.
    """
    m, d = points.shape
    bound = error_bound(d)
    chosen = [int(rng.integers(m))]
    # 1 − cosine to the nearest center, exact as in mlcd.neighbors.exact.
    distance = 1 - dots(points, points, np.arange(m), np.full(m, chosen[0]))
    while len(chosen) < k:
        distance[distance < _COPY] = 0
        distance[chosen] = 0
        mass = np.cumsum(distance)
        if mass[-1] == 0:
            # Every row is a copy of a center: the rest are any rows not taken yet.
            others = np.setdiff1d(np.arange(m), chosen)
            chosen += rng.permutation(others)[: k - len(chosen)].tolist()
            break
        count = min(_MOST_CANDIDATES, max(1, len(chosen) // 4))
        draws = np.minimum(np.searchsorted(mass, rng.random(count) * mass[-1], "right"), m - 1)
        chances = rng.random(count)
        then = distance[draws].copy()
        near = points @ points[draws].T
        for candidate, row in enumerate(draws.tolist()):
            if len(chosen) == k or chances[candidate] * then[candidate] >= distance[row]:
                continue
            chosen.append(row)
            # The product only selects the rows that this center may have come closer to.
            closer = np.flatnonzero(near[:, candidate] > 1 - distance - bound)
            exact = 1 - dots(points, points, closer, np.full(len(closer), row))
            distance[closer] = np.minimum(distance[closer], exact)
    return np.array(chosen, np.int64)


def choose_by_chains(
    points: np.ndarray, k: int, chain: int, rng: np.random.Generator
) -> np.ndarray:
    """Choose `k` of the unit rows `points` float32 [m, d] by AFK-MC²; return ids int64 [k].

    Bachem, Lucic, Hassani and Krause, *Fast and provably good seedings for k-means* (2016),
    algorithm 1: each next center is the end of a Markov chain of `chain` rows, whose proposals come
    from the distances to the first center alone and whose stationary distribution is that of
    k-means++. Its work grows with K² · `chain`, not with K times the rows. Chains are drawn many at
    a time, so that one search finds the nearest centers of all; each then follows what the chains
    before it have chosen.
    """
    m, d = points.shape
    bound = error_bound(d)
    chosen = [int(rng.integers(m))]
    distance = _distances(points, points[chosen], np.arange(m), np.zeros(m, np.int64))
    total = distance.sum()
    proposal = 0.5 * distance / total + 0.5 / m if total else np.full(m, 1 / m)
    mass = np.cumsum(proposal)
    while len(chosen) < k:
        count = min(_MOST_CANDIDATES, max(1, len(chosen) // 4), k - len(chosen))
        draws = np.searchsorted(mass, rng.random((count, chain)) * mass[-1], "right")
        draws = np.minimum(draws, m - 1)
        chances = rng.random((count, chain))
        drawn, centers = points[draws.ravel()], points[chosen]
        every = np.arange(len(drawn))
        nearest = ExactSearch(centers, prune=False).nearest(drawn, 1)[:, 0]
        gap = _distances(drawn, centers, every, nearest)
        for index in range(count):
            mine = slice(index * chain, (index + 1) * chain)
            weight = gap[mine] / proposal[draws[index]]
            place = 0
            for step in range(1, chain):
                if weight[step] > chances[index, step] * weight[place]:
                    place = step
            row = int(draws[index, place])
            if weight[place] == 0:
                # The whole chain are copies of centers: any row that is none of them.
                row = int(rng.choice(np.setdiff1d(np.arange(m), chosen)))
            chosen.append(row)
            # The product only selects the rows that this center may have come closer to.
            rest = every[mine.stop :]
            near = drawn[mine.stop :] @ points[row]
            closer = rest[near > 1 - gap[mine.stop :] - bound]
            one = points[row][None]
            exact = _distances(drawn, one, closer, np.zeros(len(closer), np.int64))
            gap[closer] = np.minimum(gap[closer], exact)
    return np.array(chosen, np.int64)


def _distances(
    left: np.ndarray, right: np.ndarray, left_ids: np.ndarray, right_ids: np.ndarray
) -> np.ndarray:
    """Return 1 − cosine of the pairs, float64 [pairs]; 0 for copies."""
    distance = 1 - dots(left, right, left_ids, right_ids)
    distance[distance < _COPY] = 0
    return distance


def _sample(n: int, m: int, seed: int) -> np.ndarray:
    """Return `m` distinct numbers below `n`, int64 [m], a function of (seed, n, m)."""
    if m == n:
        return np.arange(n)
    return np.random.default_rng(seed).choice(n, m, replace=False, shuffle=False)
