"""A map of the centers: two numbers for each, such that neighbors lie together.

The layout begins with the two directions along which centers differ most, and is then moved as by
LargeVis and UMAP (Tang et al., arXiv 1602.00370; McInnes et al., arXiv 1802.03426): each center is
drawn to its neighbors and away from some others by chance. All centers move at once and every sum
has one order, so the map depends on the centers and the seed alone.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse

from mlcd.utils.logging import progress

#: Coordinates of the map are whole numbers below this.
SIDE = 1 << 16
_SEED = 0
#: Others by chance for each center and step, and as many that lie close: so far along a curve
#: through all centers, with this weight.
_OTHERS, _CLOSE, _NEAR = 8, 64, 0.05
#: Sums of squares of so rounded numbers are whole and exact in float64.
_STEP = 1 << 12
_BLOCK = 1 << 16
#: Steps for few centers; for a million a fifth of it, as UMAP does.
_STEPS, _FEW = 400, 10_000


def layout(centers: np.ndarray, neighbors: np.ndarray) -> np.ndarray:
    """Return the place of each center on the map, uint16 [K, 2].

    `centers` float32 [K, d], `neighbors` int32 [K, m].
    """
    k, m = neighbors.shape
    if k < 3 or m < 2:
        return (np.full((k, 2), 0.5) * SIDE + np.arange(k)[:, None] * [SIDE // 8, 0]).astype("u2")
    place = _principal(centers)
    graph = _graph(neighbors)
    degree = np.asarray(graph.sum(axis=1))
    rng = np.random.default_rng(_SEED)
    steps = max(_STEPS // 5, round(_STEPS * min(1.0, (_FEW / k) ** 0.5)))
    for step in progress(range(steps), label="map", unit="step"):
        place += _move(place, graph, degree, rng) * (1 - step / steps)
    return _whole(place)


def _principal(centers: np.ndarray) -> np.ndarray:
    """Return the centers along their two directions of greatest variance, float64 [K, 2].

    Rounded, so that the last bits of the library that finds the directions do not matter.
    """
    k, d = centers.shape
    second, first = np.zeros((d, d)), np.zeros(d)
    for start in range(0, k, _BLOCK):
        part = np.rint(centers[start : start + _BLOCK].astype(np.float64) * _STEP)
        second += part.T @ part
        first += part.sum(axis=0)
    covariance = second / k - np.outer(first / k, first / k)
    _, vectors = np.linalg.eigh(covariance)
    axes = vectors[:, : -3 if d > 1 else None : -1][:, :2]
    # The sign of a direction is by chance: its largest entry is positive.
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    found = np.zeros((k, 2))
    found[:, : axes.shape[1]] = centers.astype(np.float64) @ axes
    spread = max(float(np.abs(found).max()), 1e-9)
    # Centers that fall together could never part.
    scatter = np.random.default_rng(_SEED).uniform(-0.1, 0.1, (k, 2))
    return np.asarray(np.rint(found / spread * 10 * 4096) / 4096 + scatter)


def _graph(neighbors: np.ndarray) -> scipy.sparse.csr_array:
    """Return the graph of who is whose neighbor, either way, as a matrix of ones [K, K]."""
    k, m = neighbors.shape
    row = np.repeat(np.arange(k, dtype=np.int64), m)
    one = scipy.sparse.csr_array(
        (np.ones(k * m), (row, neighbors.ravel().astype(np.int64))), shape=(k, k)
    )
    both = one.maximum(one.T).tocsr()
    both.sort_indices()
    return both


def _move(
    place: np.ndarray, graph: scipy.sparse.csr_array, degree: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """Return how far each center moves, float64 [K, 2], at the first step."""
    k = len(place)
    row = np.repeat(np.arange(k), np.diff(graph.indptr))
    apart = place[graph.indices] - place[row]
    pull = 2 / (1 + (apart * apart).sum(axis=1))
    drawn = np.stack(
        [np.bincount(row, pull * apart[:, axis], minlength=k) for axis in (0, 1)], axis=1
    )
    pushed = np.zeros((k, 2))
    for _ in range(_OTHERS):
        pushed += _push(place - place[rng.integers(0, k, k)])
    # Of many centers, those by chance are far away: some that lie close are pushed away too, or
    # a group would shrink to a point.
    along = np.argsort(morton(_turned(place, rng)), kind="stable")
    rank = np.empty(k, np.int64)
    rank[along] = np.arange(k)
    close = np.zeros((k, 2))
    for step in rng.integers(1, _CLOSE, _OTHERS):
        for other in (rank + step, rank - step):
            close += _push(place - place[along[other % k]])
    moved = drawn / degree[:, None] + (pushed + _NEAR * close) / _OTHERS
    return np.asarray(np.clip(moved, -4, 4))


def _turned(place: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return places as whole numbers, turned and shifted by chance: a curve has its corners."""
    angle, (x, y) = rng.uniform(0, 2 * np.pi), rng.uniform(0, 0.4, 2)
    cos, sin = np.cos(angle), np.sin(angle)
    turned = np.stack(
        [place[:, 0] * cos - place[:, 1] * sin, place[:, 0] * sin + place[:, 1] * cos], axis=1
    )
    low = turned.min(axis=0)
    wide = max(float((turned - low).max()), 1e-9)
    return np.asarray(((turned - low) / wide * 0.6 + [x, y]) * (SIDE - 1), np.uint16)


def _push(off: np.ndarray) -> np.ndarray:
    """Return how far centers move that lie `off` [K, 2] from others: less if it is far."""
    square = (off * off).sum(axis=1, keepdims=True)
    return np.asarray(np.clip(2 / ((0.01 + square) * (1 + square)) * off, -4, 4))


def _whole(place: np.ndarray) -> np.ndarray:
    """Return places as whole numbers on the square, with one scale for both axes."""
    # A few far ones shall not press all others together.
    low, high = np.quantile(place, [0.001, 0.999], axis=0)
    middle, half = (low + high) / 2, max(float((high - low).max()) / 2, 1e-9)
    scaled = np.clip((place - middle) / half * 0.95, -1, 1)
    return np.asarray(np.rint((scaled + 1) / 2 * (SIDE - 1)), np.uint16)


def morton(place: np.ndarray) -> np.ndarray:
    """Return the Morton number of places uint16 [K, 2], uint32 [K]: bits of y and x in turn.

    The places of a quarter of the square, and of a quarter of it, have numbers in one range.
    """
    return np.asarray(_spaced(place[:, 0]) | _spaced(place[:, 1]) << np.uint32(1))


def _spaced(values: np.ndarray) -> np.ndarray:
    spaced = values.astype(np.uint32)
    for shift, mask in ((8, 0x00FF00FF), (4, 0x0F0F0F0F), (2, 0x33333333), (1, 0x55555555)):
        spaced = (spaced | spaced << np.uint32(shift)) & np.uint32(mask)
    return spaced
