"""Initial centres: distinct random rows, or k-means++ on a sample of rows.

Both are a function of the rows and the seed alone, not of files, blocks or threads.
"""

from __future__ import annotations

import numpy as np

from mlcd.errors import UserError
from mlcd.neighbours.exact import dots, error_bound
from mlcd.neighbours.rows import Rows
from mlcd.progress import LOGGER

#: Candidates drawn at once by k-means++ once many centres stand.
_MOST_CANDIDATES = 64
#: 1 − cosine below which two rows count as copies: float32 tells nothing finer apart.
_COPY = 1e-6


def random_rows(rows: Rows, k: int, seed: int) -> np.ndarray:
    """Return `k` rows of distinct numbers, drawn uniformly; float32 [k, d]."""
    return rows.take(_sample(rows.n, k, seed))


def kmeans_plus_plus(rows: Rows, k: int, seed: int, sample: int, room: int) -> np.ndarray:
    """Return `k` centres chosen by k-means++ from `sample` rows drawn uniformly; float32 [k, d].

    The sample must fit in `room` bytes, or :class:`UserError` is raised: a smaller sample would
    silently give another result.
    """
    m = min(rows.n, max(sample, k))
    # The rows, their similarities to the candidates (twice while compared), distances, numbers.
    need = m * (4 * rows.d + 8 * _MOST_CANDIDATES + 64)
    if need > room:
        raise UserError(
            f"cluster.init: kmeans++ holds {m} rows in {(need >> 20) + 1} MiB, more than "
            "--memory-limit allows; raise it, lower cluster.init_sample, or use init random"
        )
    LOGGER.info("kmeans++ on %d of %d rows", m, rows.n)
    points = rows.take(_sample(rows.n, m, seed))
    return points[choose(points, k, np.random.default_rng([seed, 1]))]


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


def _sample(n: int, m: int, seed: int) -> np.ndarray:
    """Return `m` distinct numbers below `n`, int64 [m], a function of (seed, n, m)."""
    if m == n:
        return np.arange(n)
    return np.random.default_rng(seed).choice(n, m, replace=False, shuffle=False)
