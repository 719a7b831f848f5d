"""Upper bounds of cosine similarities from products of small integers: two to ten times as fast.

CPUs multiply integers of 8 bits many times faster than float32. Rows and centers are rounded to
such integers, and the length of what rounding takes away is measured for each row. With
x = s·p + a and c − m = t·q + b, where m is the mean of the centers,

    x · c  ≤  x · m + s·t·(p · q) + |a| · |c − m| + |s·p| · |b|,

and p · q is exact. So no statistics are involved: a center that this bound rules out is not the
nearest. All data serve, also that without structure.

Where rows have few large entries, most of the others would be rounded to 0. Then entries are mixed
in blocks of 64 by a Hadamard matrix, which leaves inner products as they are.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mlcd.neighbors.bounds import CENTERS, ROWS
from mlcd.neighbors.memory import TILE

#: Entries mixed by one Hadamard matrix.
_MIXED = 64
#: Rows of one product, of fewer if there are fewer: filled up with zeros to shapes that are tried.
_FEW_ROWS = 128
#: Largest integer of a row, and those that are tried for centers: products of CPUs without VNNI
#: are exact up to half of the range alone.
_LARGEST, _LARGEST_OF_CENTERS = 127, (127, 63)
#: Parts of the greatest entry of the centers that become the largest integer: a rare large entry
#: may be cut off where all others gain.
_CUTS = (1.0, 0.8, 0.6)
#: What it costs to round one entry of a row, in multiply-adds.
_PREPARE = 100
#: Centers on which the parts are tried.
_SAMPLE = 1024
#: Covers float32's rounding of means, norms and sums, beside what is said where it is used.
_SLACK = 4e-6
#: Instructions for such products. A CPU without them is tried all the same; see `usable`.
_LEAST = "avx2"

#: The largest integer of a center for shapes (rows, centers, dimensions) that were tried.
_largest: dict[tuple[int, int, int], int] = {}


class Prepared(NamedTuple):
    """Rows as integers int8 [≥ n, D]; float64 [n] each: unit s·t, x · m, and the rounding's."""

    integers: np.ndarray
    unit: np.ndarray
    offset: np.ndarray
    reach: np.ndarray


def loaded() -> bool:
    """Return whether the library of these products, torch, is in this process already."""
    return "torch" in sys.modules


def load() -> None:
    """Load that library."""
    import torch  # noqa: F401


def possible() -> bool:
    """Return whether this CPU may have fast products of integers."""
    try:
        return _LEAST in Path("/proc/cpuinfo").read_text(errors="replace")
    except OSError:
        return False


def usable(k: int, d: int, rows: int = ROWS) -> int:
    """Return the largest integer of a center for which products [rows, d] × [d, k] are exact.

    0 if there is none. Each shape is tried once, with the entries that overflow first: CPUs without
    VNNI add pairs of products in 16 bits.
    """
    shape = rows, min(k, CENTERS), _padded(d)
    if shape not in _largest:
        _largest[shape] = next((n for n in _LARGEST_OF_CENTERS if _exact(n, *shape)), 0)
    return _largest[shape]


def _exact(largest: int, n: int, k: int, d: int) -> bool:
    """Return whether a product is exact: of greatest entries, of random ones, and of both."""
    rng = np.random.default_rng(0)
    row, center = (
        size * rng.choice(np.array([-1, 1]), count) for size, count in ((_LARGEST, n), (largest, k))
    )
    rows, centers = (np.repeat(values[:, None], d, 1).astype(np.int8) for values in (row, center))
    few, half = n // 8, k // 2
    rows[:few] = rng.integers(-_LARGEST, _LARGEST + 1, (few, d))
    centers[:half] = rng.integers(-largest, largest + 1, (half, d))
    found = _product(rows, centers)
    greatest = found[few:, half:] == d * np.outer(row[few:], center[half:])
    return bool(greatest.all() and (found[:few] == _plain(rows[:few], centers)).all())


def _plain(rows: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Return what :func:`_product` does, slowly."""
    return (rows.astype(np.float64) @ centers.T.astype(np.float64)).astype(np.int32)


def _product(rows: np.ndarray, centers: np.ndarray) -> np.ndarray:
    """Return the products int32 [n, K] of integers int8 [n, D] and [K, D]."""
    import torch

    product: np.ndarray = torch._int_mm(torch.from_numpy(rows), torch.from_numpy(centers).T).numpy()
    return product


def _padded(d: int) -> int:
    return -(-d // _MIXED) * _MIXED


class IntegerBounds:
    """Bounds of the similarity of rows to `centers` float32 [K, d], all unit rows.

    `largest`: the greatest integer of a center, by :func:`usable`. `mixed`: entries are mixed.
    """

    #: Share of float32's time that a product usually takes.
    usual = 0.35

    def __init__(self, centers: np.ndarray, largest: int, *, mixed: bool) -> None:
        self.K, self.d = centers.shape
        #: The same, as measured here.
        self.cost = self.usual
        self._mixed, self._greatest = mixed, largest
        self.mean = centers.mean(axis=0, dtype=np.float64).astype(np.float32)
        # A rounding error of 64 additions in each of 64 entries, for rows and centers.
        self._mixing = 1.02 * _MIXED * 2.0**-24 * np.sqrt(_MIXED) if mixed else 0.0
        some = self._mix(centers[:: -(-self.K // _SAMPLE)] - self.mean)
        entry = 1e-12
        for tile in self._tiles():
            rest = self._mix(centers[tile] - self.mean)
            entry = max(entry, float(rest.max()), -float(rest.min()))
        cut = min(_CUTS, key=lambda part: _rounded(some, part * entry / largest, largest)[1].max())
        self._scale = float(np.float32(cut * entry / largest))
        #: The centers as integers, int8 [K, D].
        self.centers = np.empty((self.K, some.shape[1]), np.int8)
        length, lost = 0.0, 0.0
        for tile in self._tiles():
            rest = self._mix(centers[tile] - self.mean)
            self.centers[tile], error = _rounded(rest, self._scale, largest)
            length = max(length, float(np.sqrt(np.einsum("ij,ij->i", rest, rest).max())))
            lost = max(lost, float(error.max()))
        # What a length that float32 adds up may be too short by.
        self._longer = 1 + (some.shape[1] + 8) * 2.0**-24
        self._length = length * self._longer + self._mixing
        self._lost = lost * self._longer + self._mixing * self._length + 1e-7

    def _tiles(self) -> list[slice]:
        return [slice(start, start + TILE) for start in range(0, self.K, TILE)]

    def work(self) -> float:
        """Do what :class:`mlcd.neighbors.bounds.Bounds` says."""
        return float(self.K * self.d * self.cost + _PREPARE * self.d)

    def reorder(self, order: np.ndarray) -> None:
        """Bring the centers into another order: `order` int64 [K]."""
        self.centers = self.centers[order]

    def prepare(self, rows: np.ndarray) -> Prepared:
        """Return what :meth:`scores` and :meth:`least` take, of at most ROWS unit rows [n, d]."""
        mixed = self._mix(rows)
        entry = np.maximum(np.maximum(mixed.max(axis=1), -mixed.min(axis=1)), 1e-12)
        scale = entry / np.float32(_LARGEST)
        filled = ROWS if len(rows) > _FEW_ROWS else _FEW_ROWS
        integers = np.zeros((filled, mixed.shape[1]), np.int8)
        integers[: len(rows)], lost = _rounded(mixed, scale[:, None], _LARGEST)
        lost = lost * self._longer + self._mixing + 1e-7
        slack = _SLACK + (self.d + 2) * 2.0**-24
        reach = lost * self._length + (1 + 1e-5 + lost) * self._lost + slack
        unit = scale.astype(np.float64) * self._scale
        return Prepared(integers, unit, (rows @ self.mean).astype(np.float64), reach)

    def scores(self, prepared: Prepared, first: int, stop: int) -> np.ndarray:
        """Return the products int32 [n, stop − first] of prepared rows and some centers."""
        rows, centers = prepared.integers, self.centers[first:stop]
        exact = usable(len(centers), self.d, len(rows)) >= self._greatest
        found = _product(rows, centers) if exact else _plain(rows, centers)
        scores: np.ndarray = found[: len(prepared.unit)]
        return scores

    def least(self, prepared: Prepared, similarity: np.ndarray) -> np.ndarray:
        """Return the least scores int32 [n] of centers as similar to a row as `similarity` [n]."""
        _, unit, offset, reach = prepared
        score = np.floor((similarity.astype(np.float64) - offset - reach) / unit)
        least: np.ndarray = np.clip(score, -(2.0**30), 2.0**30).astype(np.int32)
        return least

    def _mix(self, rows: np.ndarray) -> np.ndarray:
        return mix(rows) if self._mixed else _pad(rows)


def _pad(rows: np.ndarray) -> np.ndarray:
    """Return `rows` [n, d] with zeros up to a multiple of 64 dimensions."""
    n, d = rows.shape
    if d % _MIXED == 0:
        return rows
    padded = np.zeros((n, _padded(d)), np.float32)
    padded[:, :d] = rows
    return padded


def mix(rows: np.ndarray) -> np.ndarray:
    """Return `rows` float32 [n, d] turned, [n, D]: each entry is spread over 64."""
    n = len(rows)
    # Entries far from each other are mixed, for neighbors may be alike.
    blocks = _pad(rows).reshape(n, _MIXED, -1).transpose(0, 2, 1).reshape(-1, _MIXED)
    mixed: np.ndarray = (blocks @ _HADAMARD).reshape(n, -1)
    return mixed


def _rounded(
    rows: np.ndarray, scale: np.ndarray | float, largest: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return `rows` / `scale` as integers int8, and the length float64 [n] of what that loses."""
    scale = np.asarray(scale, np.float32)
    whole = rows * (1 / scale)
    np.rint(whole, out=whole)
    np.clip(whole, -largest, largest, out=whole)
    integers = whole.astype(np.int8)
    whole *= scale
    np.subtract(rows, whole, out=whole)
    return integers, np.sqrt(np.einsum("ij,ij->i", whole, whole).astype(np.float64))


def _hadamard() -> np.ndarray:
    """Return a matrix [64, 64] of ±1/8 with orthonormal rows, the signs of a column at random."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < _MIXED:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    signs = np.random.default_rng(0).choice(np.array([-1, 1], np.float32), _MIXED)
    mixing: np.ndarray = (matrix * signs[:, None] / np.sqrt(np.float32(_MIXED))).astype(np.float32)
    return mixing


_HADAMARD = _hadamard()


def mixing_pays(centers: np.ndarray, rows: np.ndarray) -> bool | None:
    """Return whether bounds of `rows` [n, d] ≤ ROWS by `centers` are closer with mixed entries.

    None if no product of this shape is exact here.
    """
    largest = usable(*centers.shape)
    if not largest:
        return None
    some = centers[:: -(-len(centers) // _SAMPLE)]
    plain, mixed = (
        IntegerBounds(some, largest, mixed=mixed).prepare(rows).reach.mean()
        for mixed in (False, True)
    )
    return bool(mixed < 0.9 * plain)
