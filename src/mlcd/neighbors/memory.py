"""Memory limits, and how large the blocks of a streaming pass may be."""

from __future__ import annotations

import sys
from typing import NamedTuple

import psutil

from mlcd.utils.errors import UserError
from mlcd.utils.units import binary_size, whole_mebibytes

#: Rows of a block: fewer and calls cost more than work, more and the pipeline fills slowly.
_LEAST_ROWS, _MOST_ROWS = 256, 32768
#: Rows that are handled at once in float64 or int64, so that their copies stay in cache.
TILE = 512
#: Working memory of faiss and its BLAS (packing buffers, blocks of scores) and of one scan.
_WORKING_BYTES = 112 << 20
#: Rows of a block from which products of integers are worth their memory.
_INTEGERS_ROWS = 4096
#: What torch takes once it is loaded for products of integers.
_INTEGERS_BYTES = 288 << 20


def default_limit() -> int:
    """Return half of the memory that is free now, in bytes."""
    return psutil.virtual_memory().available // 2


def resident() -> int:
    """Return the bytes that this process holds now, working memory of the libraries included."""
    return psutil.Process().memory_info().rss + _WORKING_BYTES


def bytes_left(limit: int) -> int:
    """Return how many of `limit` bytes are left now, working memory of the libraries deducted."""
    return limit - resident()


class Blocks(NamedTuple):
    """How to stream rows: `rows` in a block, and whether all rows stay in memory (`keep`)."""

    rows: int
    keep: bool


def plan_blocks(limit: int, n: int, d: int, labels: int, fixed: int) -> Blocks:
    """Choose blocks so that the process stays within `limit` bytes (its centers not counted).

    The rows are float32 [n, d]; `labels` candidates are kept a row; `fixed` bytes are needed
    besides. Two blocks are in flight, one at work and one being read. No result depends on the
    choice. Raises :class:`UserError` if the limit is too small for the least blocks.
    """
    base = limit - bytes_left(limit) + fixed + 40 * TILE * d
    # float32 rows twice, the file's own rows as they are read, ids and scores of candidates.
    row = 12 * d + 48 * (labels + 4)
    if base + _LEAST_ROWS * row > limit:
        raise UserError(
            f"--memory-limit: {binary_size(limit)} is too little here; "
            f"at least {whole_mebibytes(base + _LEAST_ROWS * row)} are needed"
        )
    if base + 4 * n * d + _LEAST_ROWS * row <= limit:
        room = limit - base - 4 * n * d
        return Blocks(min(max(room // row, _LEAST_ROWS), _MOST_ROWS), keep=True)
    return Blocks(min((limit - base) // row, _MOST_ROWS), keep=False)


def plan_with_integers(limit: int, n: int, d: int, labels: int, fixed: int) -> tuple[Blocks, bool]:
    """Return what :func:`plan_blocks` does, and whether there is room for products of integers.

    That is so where their library is in this process already, and where blocks and what stays in
    memory are the same without its bytes. Raises as :func:`plan_blocks`.
    """
    plan = plan_blocks(limit, n, d, labels, fixed)
    if "torch" in sys.modules:
        return plan, True
    try:
        less = plan_blocks(limit, n, d, labels, fixed + _INTEGERS_BYTES)
    except UserError:
        return plan, False
    return (less, True) if less.keep == plan.keep and less.rows >= _INTEGERS_ROWS else (plan, False)
