"""Initial centres: distinct random rows, k-means++ or AFK-MC² on a sample of rows, or given ones.

All are a function of the rows and the seed alone, not of files, blocks or threads.
"""

from __future__ import annotations

import h5py
import numpy as np

from mlcd.config.cluster import Cluster
from mlcd.errors import UserError
from mlcd.neighbours.exact import ExactSearch, dots, error_bound
from mlcd.neighbours.memory import TILE
from mlcd.neighbours.rows import Rows
from mlcd.progress import LOGGER
from mlcd.stores import h5

#: Candidates drawn at once by k-means++ once many centres stand.
_MOST_CANDIDATES = 64
#: 1 − cosine below which two rows count as copies: float32 tells nothing finer apart.
_COPY = 1e-6
#: To draw more than one in so many, numpy lists the numbers of all.
_SPARSE = 50


def random_rows(rows: Rows, k: int, seed: int) -> np.ndarray:
    """Return `k` rows of distinct numbers, drawn uniformly; float32 [k, d]."""
    return rows.take(_sample(rows.n, k, seed))


def given(path: str, k: int, d: int) -> np.ndarray:
    """Return the dataset `centroid` of an HDF5 file as unit rows, float32 [k, d].

    Raises :class:`UserError` with the file's name if it is damaged or does not fit.
    """
    with h5.reading(path, "centroids", foreign=True) as file:
        found = file.get("centroid")
        whole = isinstance(found, h5py.Dataset)
        if not whole or found.shape != (k, d) or found.dtype not in (np.float16, np.float32):
            shape = f"{found.dtype} {list(found.shape)}" if whole else "none"
            raise UserError(
                f"{path}: expected a dataset 'centroid' [{k}, {d}] of float16 or float32, "
                f"found {shape}; cluster.initial needs K centres of the embeddings' dimension"
            )
        centres = found[:].astype(np.float32, copy=False)
    for start in range(0, k, TILE):
        tile = centres[start : start + TILE].astype(np.float64)
        norms = np.sqrt((tile * tile).sum(axis=1))
        # Written so that NaN fails too.
        bad = np.flatnonzero(~((norms > 0) & (norms < np.inf)))
        if len(bad):
            raise UserError(
                f"{path}: centre {start + bad[0]} is zero or not finite; leave it out and lower K"
            )
        centres[start : start + TILE] = tile / norms[:, None]
    return centres


def from_sample(rows: Rows, section: Cluster, room: int) -> np.ndarray:
    """Return K centres chosen by `section.init` from a uniform sample of rows; float32 [K, d].

    The sample must fit in `room` bytes, or :class:`UserError` is raised: a smaller sample would
    silently give another result.
    """
    k, seed = section.k, section.seed
    m = check_sample(section, rows.n, rows.d, room)
    LOGGER.info("%s on %d of %d rows", section.init, m, rows.n)
    points = rows.take(_sample(rows.n, m, seed))
    rng = np.random.default_rng([seed, 1])
    if section.init == "afkmc2":
        return points[choose_by_chains(points, k, section.init_chain, rng)]
    return points[choose(points, k, rng)]


def check_sample(section: Cluster, n: int, d: int, room: int) -> int:
    """Return how many of `n` rows of `d` dimensions :func:`from_sample` draws.

    Raises :class:`UserError` if they do not fit in `room` bytes.
    """
    k = section.k
    m = min(n, section.init_sample * k)
    # The rows, their similarities to the candidates (twice while compared), distances, numbers.
    need = m * (4 * d + 8 * _MOST_CANDIDATES + 64)
    if section.init == "afkmc2":
        # The centres so far and the rows of a batch of chains, too.
        need = m * (4 * d + 64)
        need += 4 * d * (k + 2 * _MOST_CANDIDATES * section.init_chain)
    if m > n // _SPARSE:
        need += 8 * n
    if need > room:
        raise UserError(
            f"cluster.init: {section.init} holds {m} rows in {(need >> 20) + 1} MiB, more than "
            "--memory-limit allows; raise it, lower cluster.init_sample, or use init random"
        )
    return m


def choose(points: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Choose `k` of the unit rows `points` float32 [m, d] by k-means++; return ids int64 [k].

    Arthur and Vassilvitskii, *k-means++: the advantages of careful seeding* (2007): each next
    centre is a row drawn with probability proportional to its squared distance, here 2 − 2·cosine,
    to the nearest centre so far. Several candidates are drawn at once from the distances as they
    were, so that one matrix product serves them all, and each is then accepted with probability
    (distance now) / (distance then). Distances only shrink, so this rejection sampling draws from
    the very same distribution.
    """
    m, d = points.shape
    bound = error_bound(d)
    chosen = [int(rng.integers(m))]
    # 1 − cosine to the nearest centre, exact as in mlcd.neighbours.exact.
    distance = 1 - dots(points, points, np.arange(m), np.full(m, chosen[0]))
    while len(chosen) < k:
        distance[distance < _COPY] = 0
        distance[chosen] = 0
        mass = np.cumsum(distance)
        if mass[-1] == 0:
            # Every row is a copy of a centre: the rest are any rows not taken yet.
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
            # The product only selects the rows that this centre may have come closer to.
            closer = np.flatnonzero(near[:, candidate] > 1 - distance - bound)
            exact = 1 - dots(points, points, closer, np.full(len(closer), row))
            distance[closer] = np.minimum(distance[closer], exact)
    return np.array(chosen, np.int64)


def choose_by_chains(
    points: np.ndarray, k: int, chain: int, rng: np.random.Generator
) -> np.ndarray:
    """Choose `k` of the unit rows `points` float32 [m, d] by AFK-MC²; return ids int64 [k].

    Bachem, Lucic, Hassani and Krause, *Fast and provably good seedings for k-means* (2016),
    algorithm 1: each next centre is the end of a Markov chain of `chain` rows, whose proposals come
    from the distances to the first centre alone and whose stationary distribution is that of
    k-means++. Its work grows with K² · `chain`, not with K times the rows. Chains are drawn many at
    a time, so that one search finds the nearest centres of all; each then follows what the chains
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
        drawn, centres = points[draws.ravel()], points[chosen]
        every = np.arange(len(drawn))
        nearest = ExactSearch(centres, prune=False).nearest(drawn, 1)[:, 0]
        gap = _distances(drawn, centres, every, nearest)
        for index in range(count):
            mine = slice(index * chain, (index + 1) * chain)
            weight = gap[mine] / proposal[draws[index]]
            place = 0
            for step in range(1, chain):
                if weight[step] > chances[index, step] * weight[place]:
                    place = step
            row = int(draws[index, place])
            if weight[place] == 0:
                # The whole chain are copies of centres: any row that is none of them.
                row = int(rng.choice(np.setdiff1d(np.arange(m), chosen)))
            chosen.append(row)
            # The product only selects the rows that this centre may have come closer to.
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
