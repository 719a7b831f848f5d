"""A pass over the rows on a device: search, sums and, where they fit, the rows themselves.

The rows stay on the device as their files store them, which is half precision in ours. From these
the device makes the same unit rows, to the bit, that :class:`mlcd.neighbors.rows.Rows` makes, and
adds them up in the same integers, so that the centers are the bytes that the CPU's passes give.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from mlcd.neighbors.engine import Engine, torch_device, torch_dtype
from mlcd.neighbors.half import HalfSearch, search_bytes
from mlcd.neighbors.ordered_sums import unit_rows
from mlcd.neighbors.rows import Rows
from mlcd.stages.cluster.sums import ClusterSums, Sums, bits_of
from mlcd.utils.logging import LOGGER, progress

#: Rows that are added up at once: their float64 and int64 copies are held.
_ADDED = 8192
#: Bytes of a row's values in a block at work, besides the search's.
_BLOCK_BYTES = 16


class DeviceSums:
    """What :class:`mlcd.stages.cluster.sums.ClusterSums` is, as tensors on `device`."""

    def __init__(self, k: int, d: int, n: int, device: torch.device) -> None:
        self.bits = bits_of(n)
        self.total = torch.zeros((k, d), dtype=torch.int64, device=device)
        self._size = torch.zeros(k, dtype=torch.int64, device=device)

    @property
    def size(self) -> np.ndarray:
        """Rows of each cluster, int64 [K]."""
        return self._size.cpu().numpy()

    def add(
        self, rows: torch.Tensor, chosen: torch.Tensor, cluster: torch.Tensor, sign: int = 1
    ) -> None:
        """Add the `chosen` of `rows` (float32 [n, d], ids int64 [m]) to the clusters `cluster` [m].

        With `sign` −1, take them out again.
        """
        for start in range(0, len(chosen), _ADDED):
            part = slice(start, start + _ADDED)
            # Rounds half to even, as numpy's rint does.
            units = (rows[chosen[part]].double() * 2.0**self.bits).round_().to(torch.int64)
            self.total.index_add_(0, cluster[part], units, alpha=sign)
            one = torch.ones_like(cluster[part])
            self._size.index_add_(0, cluster[part], one, alpha=sign)


class DevicePass:
    """The passes of one clustering of `rows` with `k` centers on the device of `where`.

    :meth:`run` brings each row of this rank into `sums`.
    """

    def __init__(self, rows: Rows, k: int, where: Engine) -> None:
        self._rows, self._where = rows, where
        self._device = torch_device(where.device)
        d = rows.d
        free = 1 << 62
        if self._device.type == "cuda":
            free = torch.cuda.mem_get_info(self._device)[0]
        free -= search_bytes(k, d) + _BLOCK_BYTES * rows.block_rows * d
        self._on_host: ClusterSums | None = None
        self.sums: Sums
        if 8 * k * d <= free:
            free -= 8 * k * d
            self._sums = DeviceSums(k, d, rows.n, self._device)
            self.sums = self._sums
        else:
            LOGGER.warning(
                "no room on the GPU for the sums of %d clusters: the CPU adds them up", k
            )
            self.sums = self._on_host = ClusterSums(k, d, rows.n)
        first, count = rows.share
        self._first = first
        self._last = torch.full((count,), -1, dtype=torch.int64, device=self._device)
        stored = sum(
            max(0, min(first + count, int(end)) - max(first, int(start))) * file.dtype.itemsize * d
            for file, start, end in zip(rows.files, rows.starts[:-1], rows.starts[1:], strict=True)
        )
        self._keep = stored + 8 * count <= free
        self._kept: list[tuple[int, torch.Tensor]] | None = None

    def run(self, centers: np.ndarray, shifts: np.ndarray | None, label: str) -> None:
        """Bring every row into the sums of its nearest center and out of those of its last one.

        `centers` float32 [K, d]; how far they have moved makes no difference here. Raises
        :class:`mlcd.utils.errors.UserError` for damaged, zero or NaN rows.
        """
        # The last pass's search is gone: two never live at once.
        search = HalfSearch(centers, self._device, torch_dtype(self._where.products))
        blocks = progress(self._blocks(), total=len(self._rows), label=label, unit="block")
        for start, stored in blocks:
            rows, zero = unit_rows(stored)
            if zero >= 0:
                raise self._rows.zero(start + zero)
            nearest = search.nearest_of(rows, 1)[:, 0]
            place = slice(start - self._first, start - self._first + len(rows))
            last = self._last[place]
            changed = (nearest != last).nonzero()[:, 0]
            had = changed[last[changed] >= 0]
            self._add(rows, changed, nearest[changed], 1)
            self._add(rows, had, last[had], -1)
            self._last[place] = nearest

    def _add(
        self, rows: torch.Tensor, chosen: torch.Tensor, cluster: torch.Tensor, sign: int
    ) -> None:
        if self._on_host is None:
            self._sums.add(rows, chosen, cluster, sign)
        elif len(chosen):
            some = rows[chosen].cpu().numpy()
            self._on_host.add(some, np.arange(len(some)), cluster.cpu().numpy(), sign)

    def _blocks(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Iterate over (first row, rows as stored), on the device; read once if they fit there."""
        if self._kept is not None:
            yield from self._kept
            return
        kept: list[tuple[int, torch.Tensor]] = []
        for start, stored in self._rows.stored_blocks():
            block = start, torch.from_numpy(stored).to(self._device)
            if self._keep:
                kept.append(block)
            yield block
        if self._keep:
            self._kept = kept
