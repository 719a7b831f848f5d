r"""The l nearest centers of each row by products of half precision, exact all the same.

A GPU's tensor cores multiply float16 or bfloat16 many times faster than float32. Such products can
choose candidates, since how far they may err is known for each row. Let x and c be a row and a
center in float32, x' and c' their roundings to half precision, s the computed product x' · c'. Then

    x·c = x'·c' + (x − x')·c + x'·(c − c'),   so by Cauchy and Schwarz
    |x·c − s| ≤ |x − x'| |c| + |x'| |c − c'| + |x'·c' − s|.

The norms are computed, not estimated, and the maxima over all centers stand for those of c. Of the
last term: products of two halves are exact in float32 (at most 22 bits), so that only the sum errs.
Tensor cores do not round it as IEEE says: they add blocks of m ≥ 4 products to the sum at once,
align all to the largest of them and cut off what lies below its 24th bit (Fasi, Higham, Mikaitis,
Pranesh, *Numerical behavior of NVIDIA tensor cores*, 2021). No term and no partial sum exceeds
S = Σ|x'ᵢ c'ᵢ| ≤ |x'||c'|, so that a block errs by at most (m + 2) 2⁻²³ S, its result cut off once
more, and all d / m blocks by at most (1 + 2 / m) d 2⁻²³ S ≤ 1.5 d 2⁻²³ S. We take d 2⁻²² S, a third
more, which also covers sums that are split and added up (rounding, or any order of a CPU's float32
sums, errs by less). Entries that would be subnormal in half precision are set to zero before the
norms are taken: no device's treatment of them matters.

If e bounds the error of a row, and A is its l-th greatest product found, then each of its l nearest
centers has a product of at least A − 2e. All centers that have are scored by
:func:`mlcd.neighbors.ordered_sums.dots`, with the bits of :func:`mlcd.neighbors.pairs.dots`; equal
scores go to the lower id.

Only the greatest product of each group of centers is kept, so that a block of products is read
once while it is still in cache. Groups that reach A − 2e are multiplied anew.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from mlcd.neighbors.ordered_sums import dots
from mlcd.utils.errors import UserError

#: Centers of a group.
_GROUP = 32
#: Rows multiplied at once on a GPU and on a CPU, and centers on a CPU. On a GPU the block of
#: products must fit in its L2 cache: least and most centers, and the part of the cache.
_ROWS, _CPU_ROWS, _CPU_CENTERS = 4096, 256, 4096
_LEAST_TILE, _MOST_TILE, _CACHE = 1024, 8192, 0.85
#: Values of the centers of groups that are gathered at once.
_GATHERED = 1 << 27
#: Pairs of a row and a group that are settled at once, unless one row has more.
_PAIRS = 1 << 17
#: Covers norms and thresholds as they are rounded to float32, and the last bits of float64 scores.
_SLACK = 1e-6
#: Products that are compared with float64's before the first search.
_CHECKED = 1024


class Halves(NamedTuple):
    """Rows in half precision [n, d], norms of these, and of what rounding took; float64 [n]."""

    rows: torch.Tensor
    norm: torch.Tensor
    lost: torch.Tensor


def rounded(rows: torch.Tensor, dtype: torch.dtype) -> Halves:
    """Round `rows` float32 [n, d] to `dtype`; what would be subnormal becomes zero."""
    half = torch.empty(rows.shape, dtype=dtype, device=rows.device)
    norm = torch.empty(len(rows), dtype=torch.float64, device=rows.device)
    lost = torch.empty_like(norm)
    least = torch.finfo(dtype).tiny
    step = max(1, (1 << 23) // rows.shape[1])
    for start in range(0, len(rows), step):
        part = slice(start, start + step)
        tile = rows[part].to(dtype)
        tile = tile.masked_fill_(tile.abs() < least, 0)
        half[part] = tile
        wide = tile.double()
        norm[part] = torch.linalg.vector_norm(wide, dim=1)
        lost[part] = torch.linalg.vector_norm(rows[part].double() - wide, dim=1)
    return Halves(half, norm, lost)


def accumulation_error(d: int) -> float:
    """Return the bound on the error of a sum of `d` products, as a part of |x'||c'|."""
    return d * 2.0**-22


class HalfSearch:
    """Exact search among `centers`, float32 [K, d], by products of `dtype` on `device`.

    The interface of :class:`mlcd.neighbors.exact.ExactSearch`. It holds the centers in float32 and
    in half precision on the device. Raises :class:`UserError` if they do not fit there, or if the
    device's products err by more than the bound says.
    """

    def __init__(self, centers: np.ndarray, device: torch.device, dtype: torch.dtype) -> None:
        self.K, self.d = centers.shape
        self.device, self._dtype = device, dtype
        if device.type == "cuda":
            check_room(search_bytes(self.K, self.d), device, f"{self.K} centers of {self.d} values")
            # Sums of parts must not be rounded to half precision.
            torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
            torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        self._tile = _tile(device)
        self._rows = _ROWS if device.type == "cuda" else _CPU_ROWS
        self.centers = torch.from_numpy(np.ascontiguousarray(centers, np.float32)).to(device)
        halves = rounded(self.centers, dtype)
        self._half = halves.rows
        # The greatest |c|, |c − c'| and |c'| of all centers.
        lost, norm = float(halves.lost.max()), float(halves.norm.max())
        self._reach = (norm + lost, lost, norm)
        self._check(halves)
        # Of each tile of centers: its first, its groups, and how many of its members are centers.
        self._starts = range(0, self.K, self._tile)

    def nearest(self, rows: np.ndarray, l: int) -> np.ndarray:
        """Return the ids of the `l` ≤ K nearest centers of each row, int64 [n, l], nearest first.

        `rows` is float32 [n, d]. Nearest is the largest :func:`mlcd.neighbors.pairs.dots`, ties by
        lower id.
        """
        return self.nearest_of(self._here(rows), l).cpu().numpy()

    def nearest_of(self, rows: torch.Tensor, l: int) -> torch.Tensor:
        """Do the same for `rows` on the device; the ids int64 [n, l] are there too."""
        out = torch.empty((len(rows), l), dtype=torch.int64, device=self.device)
        for start in range(0, len(rows), self._rows):
            part = slice(start, start + self._rows)
            self._block(rows[part], l, out[part])
        return out

    def similarities(self, rows: np.ndarray, ids: np.ndarray) -> np.ndarray:
        """Return the cosine similarity of each row to its centers `ids` [n, l], float64 [n, l]."""
        n, l = ids.shape
        row = torch.arange(n, device=self.device).repeat_interleave(l)
        center = torch.from_numpy(np.ascontiguousarray(ids, np.int64)).to(self.device).flatten()
        return dots(self._here(rows), self.centers, row, center).view(n, l).cpu().numpy()

    def _here(self, rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(rows, np.float32)).to(self.device)

    def error(self, halves: Halves) -> torch.Tensor:
        """Return how far the products of rows with any center may err, float32 [n]."""
        center, lost, rounded_norm = self._reach
        error = halves.lost * center + halves.norm * lost
        error += halves.norm * (rounded_norm * accumulation_error(self.d))
        return (error * (1 + _SLACK) + _SLACK).float()

    def _block(self, rows: torch.Tensor, l: int, out: torch.Tensor) -> None:
        """Put the ids of the nearest centers of `rows` into `out` int64 [n, l]."""
        halves = rounded(rows, self._dtype)
        best = self._best_of_groups(halves.rows)
        if l == 1:
            lth = best.amax(dim=1)
        elif best.shape[1] < l:
            lth = best.new_full((len(rows),), -torch.inf)
        else:
            lth = best.topk(l, dim=1).values[:, -1]
        least = lth - 2 * self.error(halves)
        open_ = best >= least[:, None]
        number = np.cumsum(open_.sum(dim=1).cpu().numpy())
        start = 0
        while start < len(rows):
            before = number[start - 1] if start else 0
            stop = max(start + 1, int(np.searchsorted(number, before + _PAIRS, "right")))
            part = slice(start, stop)
            row, group = open_[part].nonzero(as_tuple=True)
            few = Halves(*(value[part] for value in halves))
            self._settle(rows[part], few, least[part], row, group, l, out[part])
            start = stop

    def _best_of_groups(self, rows: torch.Tensor) -> torch.Tensor:
        """Return the greatest product of each row with each group, float32 [n, groups]."""
        groups = -(-(self.K % self._tile) // _GROUP) + self.K // self._tile * self._per_tile
        best = torch.empty((len(rows), groups), dtype=torch.float32, device=self.device)
        first = 0
        for start in self._starts:
            tile = self._half[start : start + self._tile]
            products = _multiply(rows, tile.T)
            if short := -len(tile) % _GROUP:
                products = torch.nn.functional.pad(products, (0, short), value=-torch.inf)
            # Members of a group lie `count` apart: neighboring threads read neighboring values.
            count = products.shape[1] // _GROUP
            by_member = products.view(len(rows), _GROUP, count)
            torch.amax(by_member, dim=1, out=best[:, first : first + count])
            first += count
        return best

    @property
    def _per_tile(self) -> int:
        return self._tile // _GROUP

    def _members(self, group: torch.Tensor) -> torch.Tensor:
        """Return the ids of the centers of each group, int64 [groups, members]; past K: none."""
        tile, place = group // self._per_tile, group % self._per_tile
        start = tile * self._tile
        # The last tile may be narrower.
        width = (self.K - start).clamp(max=self._tile)
        count = (width + _GROUP - 1) // _GROUP
        member = torch.arange(_GROUP, device=group.device)
        inside = member[None] * count[:, None] + place[:, None]
        return torch.where(inside < width[:, None], start[:, None] + inside, self.K)

    def _settle(
        self, rows: torch.Tensor, halves: Halves, least: torch.Tensor, row: torch.Tensor,
        group: torch.Tensor, l: int, out: torch.Tensor,
    ) -> None:  # fmt: skip
        """Put the nearest centers into `out`, given pairs of a row and a group that reach `least`.

        `row`, `group` int64 [pairs], by rising row.
        """
        row, center, score = self._candidates(halves.rows, least, row, group)
        # By row, the greatest first: the l-th found may be greater than that of the groups.
        row, (center, score) = _by_row(row, score, center, score)
        first = torch.searchsorted(row, torch.arange(len(rows), device=row.device))
        least = score[first + l - 1] - 2 * self.error(halves)
        kept = score >= least[row]
        row, center = row[kept], center[kept]
        first = torch.searchsorted(row, torch.arange(len(rows) + 1, device=row.device))
        if l == 1:
            out[:, 0] = center[first[:-1]]
            several = (first[1:] - first[:-1] > 1)[row].nonzero()[:, 0]
            if not len(several):
                return
            row, center = row[several], center[several]
        center, order = center.sort(stable=True)
        row = row[order]
        exact = dots(rows, self.centers, row, center)
        row, (center,) = _by_row(row, exact, center)
        mine = row.unique_consecutive() if l == 1 else torch.arange(len(rows), device=row.device)
        first = torch.searchsorted(row, mine)
        out[mine] = center[first[:, None] + torch.arange(l, device=row.device)]

    def _candidates(
        self, rows: torch.Tensor, least: torch.Tensor, row: torch.Tensor, group: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return rows, centers and products of the pairs in the groups that reach `least`."""
        found = []
        step = max(1, _GATHERED // (_GROUP * self.d))
        for start in range(0, len(row), step):
            part = slice(start, start + step)
            members = self._members(group[part])
            gathered = self._half[members.clamp(max=self.K - 1)]
            score = _multiply(gathered, rows[row[part]][:, :, None])[:, :, 0]
            pair, place = ((score >= least[row[part]][:, None]) & (members < self.K)).nonzero(
                as_tuple=True
            )
            found.append((row[part][pair], members[pair, place], score[pair, place]))
        rows_, centers, scores = (torch.cat(values) for values in zip(*found, strict=True))
        return rows_, centers, scores

    def _check(self, halves: Halves) -> None:
        """Raise :class:`UserError` if products of this device err by more than their bound."""
        some = self.centers[:: max(1, self.K // 32)][:32]
        few = rounded(some, self._dtype)
        got = _multiply(few.rows, self._half[:_CHECKED].T).double()
        # In float64 on the host: sites can turn a GPU's own wider products into narrower ones.
        true = some.cpu().double() @ self.centers[:_CHECKED].cpu().double().T
        worst = float(((got.cpu() - true).abs() - self.error(few).cpu()[:, None]).max())
        if not worst <= 0:
            raise UserError(
                f"--products: products of {self._dtype} on {self.device} err by {worst:.1e} more "
                "than tensor cores may; use --products float32, and report this device"
            )


def _by_row(
    row: torch.Tensor, score: torch.Tensor, *values: torch.Tensor
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Sort `row` and `values` by rising row, then falling score, then as they came."""
    order = score.sort(descending=True, stable=True).indices
    order = order[row[order].sort(stable=True).indices]
    return row[order], [value[order] for value in values]


def _multiply(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Return the product of two matrices, or of two stacks, in float32 from half precision."""
    if left.device.type != "cuda":
        # The same products, exact in float32, and another order of adding them.
        return left.float() @ right.float()
    if left.dim() == 2:
        return torch.mm(left, right, out_dtype=torch.float32)
    return torch.bmm(left, right, out_dtype=torch.float32)


def _tile(device: torch.device) -> int:
    """Return how many centers are multiplied at once."""
    if device.type != "cuda":
        return _CPU_CENTERS
    cache = torch.cuda.get_device_properties(device).L2_cache_size
    tile = _LEAST_TILE
    while tile < _MOST_TILE and 4 * _ROWS * 2 * tile <= _CACHE * cache:
        tile *= 2
    return tile


def search_bytes(k: int, d: int) -> int:
    """Return the memory of a search among centers [k, d] on its device, in bytes."""
    working = 4 * _ROWS * (_MOST_TILE + k // _GROUP) + 4 * _GATHERED + (1 << 28)
    return 6 * k * d + working


def check_room(needed: int, device: torch.device, what: str) -> None:
    """Raise :class:`UserError` if `needed` bytes for `what` are more than a GPU has free."""
    from mlcd.utils.units import binary_size

    # What torch holds and does not use comes back first.
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info(device)[0]
    if needed > free:
        raise UserError(
            f"--device cuda: {what} take {binary_size(needed)} on the GPU, which has "
            f"{binary_size(free)} free; use a larger GPU, mode two_level, or --device cpu"
        )
