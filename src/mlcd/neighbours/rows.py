"""Unit rows of one or many embeddings files, streamed in blocks with read-ahead."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mlcd.errors import UserError
from mlcd.neighbours.memory import TILE
from mlcd.stores.embeddings import Embeddings


class Rows:
    """The rows of `files`, one after another, as float32 unit rows numbered 0 … n − 1.

    `block_rows` bounds a block and `keep` holds all rows in memory after the first pass; see
    :func:`mlcd.neighbours.memory.plan_blocks`. Rows that are zero or not finite are refused when
    they are first read, by file and row.
    """

    def __init__(self, files: Sequence[Embeddings], block_rows: int, keep: bool = False) -> None:
        self.files = list(files)
        self.block_rows = block_rows
        self.starts = np.cumsum([0, *(file.n for file in self.files)])
        self.n = int(self.starts[-1])
        self.d = self.files[0].d
        self._kept: list[tuple[int, np.ndarray]] | None = None
        self._keep = keep

    def __len__(self) -> int:
        """Return the number of blocks of a pass."""
        return sum(-(-file.n // self.block_rows) for file in self.files)

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Iterate over (first row, float32 [≤ block_rows, d]), reading one block ahead.

        Blocks must not be changed. Raises :class:`UserError` for damaged, zero or NaN rows.
        """
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[tuple[int, np.ndarray]] | None = [] if self._keep else None
        places = [
            (index, start)
            for index, file in enumerate(self.files)
            for start in range(0, file.n, self.block_rows)
        ]
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(self._block, *places[0]) if places else None
            for following in [*places[1:], None]:
                if ahead is None:
                    break
                block = ahead.result()
                ahead = reader.submit(self._block, *following) if following else None
                if kept is not None:
                    kept.append(block)
                yield block
                # Dropped before the next is awaited, so that two blocks at most are held.
                del block
        self._kept = kept

    def take(self, ids: np.ndarray) -> np.ndarray:
        """Return the rows `ids` (int64 [m], any order), float32 [m, d].

        Files are read in order in slabs, for single rows at random cost a whole HDF5 chunk each.
        """
        out = np.empty((len(ids), self.d), np.float32)
        order = np.argsort(ids, kind="stable")
        wanted = ids[order]
        step = min(self.block_rows, 4096)
        for index, file in enumerate(self.files):
            first, last = np.searchsorted(wanted, self.starts[index : index + 2])
            while first < last:
                start = int(wanted[first] - self.starts[index]) // step * step
                stop = min(start + step, file.n)
                end = int(np.searchsorted(wanted, self.starts[index] + stop))
                slab = _unit_rows(file, start, stop)
                out[order[first:end]] = slab[wanted[first:end] - self.starts[index] - start]
                first = end
        return out

    def _block(self, index: int, start: int) -> tuple[int, np.ndarray]:
        file = self.files[index]
        stop = min(start + self.block_rows, file.n)
        return int(self.starts[index]) + start, _unit_rows(file, start, stop)


def _unit_rows(file: Embeddings, start: int, stop: int) -> np.ndarray:
    """Read rows start … stop − 1 and divide each by its norm, taken in float64."""
    rows = file.read(start, stop)
    for first in range(0, len(rows), TILE):
        tile = rows[first : first + TILE].astype(np.float64)
        norms = np.sqrt((tile * tile).sum(axis=1))
        if not norms.all():
            row = start + first + int(np.argmin(norms))
            raise UserError(
                f"{file.path}: row {row} of embedding is all zeros and has no direction; "
                "leave such rows out or embed the file again"
            )
        tile /= norms[:, None]
        rows[first : first + TILE] = tile
    return rows
