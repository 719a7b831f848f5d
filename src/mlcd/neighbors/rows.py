"""Unit rows of one or many embeddings files, streamed in blocks with read-ahead."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from mlcd.data.embeddings import Embeddings
from mlcd.neighbors.memory import TILE
from mlcd.utils.errors import UserError

#: Rows read at once at most to take single ones.
SLAB = 4096


class Rows:
    """The rows of `files`, one after another, as float32 unit rows numbered 0 … n − 1.

    `block_rows` bounds a block and `keep` holds all rows in memory after the first pass; see
    :func:`mlcd.neighbors.memory.plan_blocks`. Rows that are zero or not finite are refused when
    they are first read, by file and row. With `part` (rank, ranks), :meth:`blocks` gives only that
    share of the rows: ranges of equal length in the order of rows.
    """

    def __init__(
        self,
        files: Sequence[Embeddings],
        block_rows: int,
        keep: bool = False,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self.files = list(files)
        self.block_rows = block_rows
        self.starts = np.cumsum([0, *(file.n for file in self.files)])
        self.n = int(self.starts[-1])
        self.d = self.files[0].d
        rank, ranks = part
        first, last = self.n * rank // ranks, self.n * (rank + 1) // ranks
        #: Number of the first row of this part, and how many rows it has.
        self.share = first, last - first
        self._places = list(self._places_of(first, last))
        self._kept: list[tuple[int, np.ndarray]] | None = None
        self._keep = keep

    def __len__(self) -> int:
        """Return the number of blocks of a pass."""
        return len(self._places)

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Iterate over (first row, float32 [≤ block_rows, d]), reading one block ahead.

        Blocks must not be changed. Raises :class:`UserError` for damaged, zero or NaN rows.
        """
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[tuple[int, np.ndarray]] | None = [] if self._keep else None
        for block in self._read_ahead(_unit_rows):
            if kept is not None:
                kept.append(block)
            yield block
            # Dropped before the next is awaited, so that two blocks at most are held.
            del block
        self._kept = kept

    def stored_blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """Iterate over the same blocks as the files store them, float16 or float32.

        Their rows are not divided by their norms, and none are kept.
        """
        return self._read_ahead(_stored_rows)

    def zero(self, row: int) -> UserError:
        """Return the error that says that `row` is all zeros."""
        index = int(np.searchsorted(self.starts, row, "right")) - 1
        return _zero(self.files[index], row - int(self.starts[index]))

    def take(self, ids: np.ndarray) -> np.ndarray:
        """Return the rows `ids` (int64 [m], any order), float32 [m, d].

        Files are read in order in slabs, for single rows at random cost a whole HDF5 chunk each.
        """
        out = np.empty((len(ids), self.d), np.float32)
        order = np.argsort(ids, kind="stable")
        wanted = ids[order]
        step = min(self.block_rows, SLAB)
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

    def _places_of(self, first: int, last: int) -> Iterator[tuple[int, int, int]]:
        """Cut rows first … last − 1 into blocks within files: (file, start, stop) each."""
        for index, file in enumerate(self.files):
            offset = int(self.starts[index])
            end = min(file.n, last - offset)
            for start in range(max(0, first - offset), end, self.block_rows):
                yield index, start, min(start + self.block_rows, end)

    def _read_ahead(
        self, read: Callable[[Embeddings, int, int], np.ndarray]
    ) -> Iterator[tuple[int, np.ndarray]]:
        """Iterate over the blocks that `read` makes of (file, start, stop), one ahead."""

        def block(index: int, start: int, stop: int) -> tuple[int, np.ndarray]:
            return int(self.starts[index]) + start, read(self.files[index], start, stop)

        places = self._places
        with ThreadPoolExecutor(1) as reader:
            ahead = reader.submit(block, *places[0]) if places else None
            for following in [*places[1:], None]:
                if ahead is None:
                    break
                found = ahead.result()
                ahead = reader.submit(block, *following) if following else None
                yield found
                del found


def _stored_rows(file: Embeddings, start: int, stop: int) -> np.ndarray:
    """Read rows start … stop − 1 in the file's own type."""
    return file.read_stored(start, stop)


def _unit_rows(file: Embeddings, start: int, stop: int) -> np.ndarray:
    """Read rows start … stop − 1 and divide each by its norm, taken in float64."""
    rows = file.read(start, stop)
    for first in range(0, len(rows), TILE):
        tile = rows[first : first + TILE].astype(np.float64)
        norms = np.sqrt((tile * tile).sum(axis=1))
        if not norms.all():
            raise _zero(file, start + first + int(np.argmin(norms)))
        tile /= norms[:, None]
        rows[first : first + TILE] = tile
    return rows


def _zero(file: Embeddings, row: int) -> UserError:
    return UserError(
        f"{file.path}: row {row} of embedding is all zeros and has no direction; "
        "leave such rows out or embed the file again"
    )
