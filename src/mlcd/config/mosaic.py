"""Mosaics: how the images of a step are divided into whole ones and tiles of canvases."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import NamedTuple

#: Shares are fractions with no larger denominator.
_FINEST = 100


class Mosaic(NamedTuple):
    """The least group of rows (labeled images) that holds the asked share of tiles exactly.

    `grid`: tiles of a canvas per side. A group is `whole` whole images, and `canvases` full
    canvases. Every micro-batch of every rank is so many groups; which image is a tile of which
    canvas follows from its place in the global batch alone.
    """

    grid: int
    whole: int
    canvases: int

    @property
    def tiles(self) -> int:
        """Tiles of a group."""
        return self.canvases * self.grid**2

    @property
    def rows(self) -> int:
        """Rows of a group: whole images and tiles."""
        return self.whole + self.tiles

    @property
    def images(self) -> int:
        """Images of a group that the encoder sees: whole ones and canvases."""
        return self.whole + self.canvases

    @property
    def words(self) -> str:
        """A group in words."""
        whole = f"{self.whole} whole image{'s' * (self.whole != 1)}"
        canvases = f"{self.canvases} canvas{'es' * (self.canvases != 1)}"
        return f"{whole} and {canvases} of {self.grid**2} tiles"


def mosaic_of(grid: int, share: float) -> Mosaic:
    """Return the least group of which `share` (to a hundredth, or a third) are tiles."""
    near = Fraction(share).limit_denominator(_FINEST)
    # Neither none nor all, however near the share is to it.
    near = min(max(near, Fraction(1, _FINEST)), 1 - Fraction(1, _FINEST))
    rows = near.denominator * grid**2 // math.gcd(near.numerator, grid**2)
    tiles = rows * near.numerator // near.denominator
    return Mosaic(grid, rows - tiles, tiles // grid**2)
