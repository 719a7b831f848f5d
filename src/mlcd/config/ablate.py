"""Section `ablate`: a grid of trainings that share every earlier stage."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple, cast

from pydantic import Field, field_validator

from mlcd.config.base import MOST_SEED, Section
from mlcd.config.train import Train

Loss = Literal["mlcd", "mlc", "single"]


class Cell(NamedTuple):
    """One setting of the grid, whatever its seeds: loss, labels per image, share, clusters."""

    loss: Loss
    l: int
    r: float
    k: int

    @property
    def name(self) -> str:
        """The cell's folder: loss, l, r and K, such as mlcd-l8-r0.1-k256."""
        return f"{self.loss}-l{self.l}-r{self.r:g}-k{self.k}"

    def train(self, section: Train, seed: int) -> Train:
        """Return the section `train` of a run, with this cell's values and `seed` in it."""
        return section.changed(loss=self.loss, positives=self.l, negative_ratio=self.r, seed=seed)

    @classmethod
    def parse(cls, name: str) -> Cell:
        """Return the cell called `name`. Raises ValueError for anything else."""
        found = re.fullmatch(CELL_PATTERN, name)
        if not found:
            raise ValueError(f"{name!r} names no cell")
        loss, l, r, k = re.split(r"-[lrk](?=\d)", name)
        return cls(cast(Loss, loss), int(l), float(r), int(k))


#: What :attr:`Cell.name` looks like.
CELL_PATTERN = r"(?:mlcd|mlc|single)-l\d+-r\d[0-9.e-]*-k\d+"


class Grid(Section):
    """Every combination of the values below, once per seed; null takes the run's own value."""

    loss: list[Loss] | None = Field(
        None, min_length=1, description="Values of train.loss; null: the run's own."
    )
    l: list[int] | None = Field(
        None,
        min_length=1,
        description="Labels per image; null: label.top. Values up to label.top read the first l of "
        "the run's labels, larger ones are labeled once more. single has l = 1.",
    )
    r: list[float] | None = Field(
        None, min_length=1, description="Values of train.negative_ratio; null: the run's own."
    )
    k: list[int] | None = Field(
        None,
        min_length=1,
        description="Numbers of clusters; null: cluster.k. Another K is clustered and labeled "
        "once, for all cells that have it.",
    )
    seeds: list[int] = Field(
        [0, 1, 2],
        min_length=1,
        description="Seeds of training and evaluation. They stand in for train.seed and "
        "evaluate.seed; clusters and labels are the same for all.",
    )

    @field_validator("loss", "l", "r", "k", "seeds")
    @classmethod
    def _distinct(cls, values: list[object] | None) -> list[object] | None:
        if values is not None and len(set(values)) < len(values):
            raise ValueError(f"a value stands twice in {values}; expected each once")
        return values

    @field_validator("l", "k")
    @classmethod
    def _positive(cls, values: list[int] | None) -> list[int] | None:
        if values is not None and min(values) < 1:
            raise ValueError(f"expected values of at least 1, got {min(values)}")
        return values

    @field_validator("r")
    @classmethod
    def _shares(cls, values: list[float] | None) -> list[float] | None:
        if values is not None and not all(0 < value <= 1 for value in values):
            raise ValueError(f"expected shares of more than 0 and at most 1, got {values}")
        return values

    @field_validator("seeds")
    @classmethod
    def _seeds(cls, values: list[int]) -> list[int]:
        if min(values) < 0 or max(values) > MOST_SEED:
            raise ValueError(f"expected seeds of at least 0 and at most {MOST_SEED}, got {values}")
        return values

    def cells(self, own: Cell) -> list[Cell]:
        """Return the grid's cells in order; `own` holds the run's own values.

        The loss mlc with one positive is that of `single` (Eq. 4 with |P| = 1), and `single` looks
        at one positive whatever l is: such cells are one cell, `single` with l = 1.
        """
        found = []
        for k in self.k or [own.k]:
            for r in self.r or [own.r]:
                for loss in self.loss or [own.loss]:
                    for l in self.l or [own.l]:
                        one = loss == "single" or (loss == "mlc" and l == 1)
                        found.append(Cell("single", 1, r, k) if one else Cell(loss, l, r, k))
        return list(dict.fromkeys(found))


class Ablate(Section):
    """Train again with other losses, l, r or K, over seeds, and compare (paper: section 4.4).

    Download, embed, cluster and label are shared where nothing differs.
    """

    grids: list[Grid] = Field(
        [],
        description="Grids whose runs are trained and compared, each run once where grids "
        "overlap; an empty list leaves the ablation out. Two grids can give some cells more seeds.",
    )
    baselines: list[Literal["pixels", "random", "frozen"]] = Field(
        ["pixels", "random"],
        description="Features without training that the table holds beside the cells: raw pixels, "
        "the encoder at random weights (both once per seed), the frozen encoder of the stage embed "
        "(once, with evaluate.seed).",
    )

    def sealed(self) -> None:
        """As :meth:`Section.sealed`: none, since cells are runs of their own."""
        return

    def runs(self, own: Cell) -> list[tuple[Cell, int]]:
        """Return every (cell, seed), each once."""
        return list(
            dict.fromkeys(
                (cell, seed)
                for grid in self.grids
                for cell in grid.cells(own)
                for seed in grid.seeds
            )
        )
