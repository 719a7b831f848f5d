"""Mosaics in a micro-batch: which rows are whole images, and where on its canvas each tile lies.

The rows of a step are cut into groups (:class:`mlcd.config.mosaic.Mosaic`), and so are those of
each rank and micro-batch, which are whole groups. In a group the first rows are whole images, the
others fill canvases row by row. So what is a tile, of which canvas, and beside what, depends on the
global batch alone, and not on ranks or micro-batches. A tile is the crop of its image that a whole
image would be, at the size of a tile.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from mlcd.config.mosaic import Mosaic
from mlcd.config.train import Train
from mlcd.training.read_ahead import Boxes
from mlcd.utils.errors import UserError

#: Of an image [3, side, side]: all channels of some rows and columns.
Area = tuple[slice, slice, slice]
#: A group without tiles.
_PLAIN = Mosaic(grid=1, whole=1, canvases=0)


class Layout(NamedTuple):
    """A micro-batch of `groups` groups: first all whole images, then all canvases."""

    mosaic: Mosaic
    groups: int

    @classmethod
    def of(cls, mosaic: Mosaic | None, rows: int) -> Layout:
        """Return the layout of a micro-batch of so many rows, which are whole groups."""
        mosaic = mosaic or _PLAIN
        groups, left = divmod(rows, mosaic.rows)
        assert not left, "the driver has looked"
        return cls(mosaic, groups)

    @property
    def grid(self) -> int:
        """Tiles of a canvas per side; 1 without a mosaic."""
        return self.mosaic.grid

    @property
    def whole(self) -> int:
        """Rows that are whole images."""
        return self.groups * self.mosaic.whole

    @property
    def images(self) -> int:
        """Whole images and canvases."""
        return self.groups * self.mosaic.images

    def arranged(self, rows: np.ndarray) -> np.ndarray:
        """Return the rows of a micro-batch [n], as they lie in the global batch, as it has them."""
        groups = rows.reshape(self.groups, self.mosaic.rows)
        first = self.mosaic.whole
        return np.concatenate([groups[:, :first].ravel(), groups[:, first:].ravel()])

    def rows_of(self, part: range) -> range:
        """Return the rows that images `part` of the micro-batch show."""
        return range(self._first_row(part.start), self._first_row(part.stop))

    def _first_row(self, image: int) -> int:
        return image + max(0, image - self.whole) * (self.grid**2 - 1)

    def place(self, row: int, side: int) -> tuple[int, Area | None]:
        """Return the image of `side` pixels that shows a row, and where; None for all of it."""
        if row < self.whole:
            return row, None
        canvas, tile = divmod(row - self.whole, self.grid**2)
        size = side // self.grid
        top, left = (size * n for n in divmod(tile, self.grid))
        area = slice(None), slice(top, top + size), slice(left, left + size)
        return self.whole + canvas, area

    def boxes(self) -> Boxes | None:
        """Return the boxes of all tiles; None if the rows are the images."""
        if not self.mosaic.canvases:
            return None
        grid = self.grid
        canvases = self.images - self.whole
        tile = torch.arange(grid**2)
        corner = torch.stack([tile % grid, tile // grid], dim=1)
        # Both edges divided alike, so that neighbors meet exactly.
        box = torch.cat([corner, corner + 1], dim=1).float() / grid
        owner = (self.whole + torch.arange(canvases)).repeat_interleave(grid**2)
        return Boxes(box.repeat(canvases, 1), owner, self.whole)


def check_share(section: Train, ranks: int) -> None:
    """Raise :class:`UserError` if a rank's share of a step is not made of whole groups."""
    mosaic, share = section.mosaic, section.batch_size // ranks
    if mosaic is not None and share % mosaic.rows:
        raise UserError(
            f"train.batch_size: a rank's {share} images per step are no multiple of {mosaic.rows} "
            f"({mosaic.words}: train.mosaic_grid, train.mosaic_share); change one of these, or "
            "--ranks-per-node"
        )
