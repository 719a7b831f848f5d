"""float64 sums on a device in numpy's order, so that they are the bits that numpy gives.

numpy adds up a row by halves down to 128 entries, and those in eight columns (its pairwise
summation, `numpy/_core/src/umath/loops_utils.h.src`). IEEE additions in one order have one result
on any machine; a test holds this order to numpy's for many lengths.
"""

from __future__ import annotations

import torch

#: numpy adds up so many entries without halving, in so many columns.
_WHOLE, _COLUMNS = 128, 8
#: float64 values of one block of rows or products: bounds what a device holds besides.
_VALUES = 1 << 23


def pairwise_sum(x: torch.Tensor) -> torch.Tensor:
    """Return the sums of the rows of `x` float64 [p, n], float64 [p], in numpy's order."""
    n = x.shape[1]
    if n < _COLUMNS:
        short = torch.zeros(len(x), dtype=x.dtype, device=x.device)
        for place in range(n):
            short = short + x[:, place]
        return short
    if n > _WHOLE:
        half = n // 2
        half -= half % _COLUMNS
        if 2 * half == n:
            # Both halves at once: fewer and larger operations.
            parts = pairwise_sum(x.reshape(2 * len(x), half)).view(len(x), 2)
            both: torch.Tensor = parts[:, 0] + parts[:, 1]
            return both
        return pairwise_sum(x[:, :half]) + pairwise_sum(x[:, half:])
    end = n - n % _COLUMNS
    column = x[:, :_COLUMNS]
    for start in range(_COLUMNS, end, _COLUMNS):
        column = column + x[:, start : start + _COLUMNS]
    two = column[:, 0::2] + column[:, 1::2]
    four = two[:, 0::2] + two[:, 1::2]
    out: torch.Tensor = four[:, 0] + four[:, 1]
    for start in range(end, n):
        out = out + x[:, start]
    return out


def dots(
    left: torch.Tensor, right: torch.Tensor, left_ids: torch.Tensor, right_ids: torch.Tensor
) -> torch.Tensor:
    """Return what :func:`mlcd.neighbors.pairs.dots` returns, to the bit, as a tensor on `right`.

    `left` and `right` are float32 [·, d], the ids int64 [pairs]; float64 [pairs].
    """
    out = torch.empty(len(left_ids), dtype=torch.float64, device=right.device)
    step = max(1, _VALUES // right.shape[1])
    for start in range(0, len(left_ids), step):
        part = slice(start, start + step)
        # Products of float32 are exact in float64.
        out[part] = pairwise_sum(left[left_ids[part]].double() * right[right_ids[part]].double())
    return out


def unit_rows(rows: torch.Tensor) -> tuple[torch.Tensor, int]:
    """Return `rows` [n, d] divided by their norms, float32, and the first row of zeros or −1.

    The bits are those of :meth:`mlcd.neighbors.rows.Rows.blocks`.
    """
    out = torch.empty(rows.shape, dtype=torch.float32, device=rows.device)
    step, zero = max(1, _VALUES // rows.shape[1]), -1
    for start in range(0, len(rows), step):
        tile = rows[start : start + step].double()
        norms = pairwise_sum(tile * tile).sqrt()
        if zero < 0 and not bool(norms.all()):
            zero = start + int(norms.argmin())
        out[start : start + step] = tile / norms[:, None]
    return out, zero
