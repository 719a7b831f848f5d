"""The gradient of some rows of a large matrix."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class RowGradient:
    """rows: int64 [t], distinct; values: [t, d], the gradient of those rows."""

    rows: Tensor
    values: Tensor

    def add(self, rows: Tensor, values: Tensor) -> None:
        """Add the gradient of other rows in place; `rows` [u] distinct, `values` [u, d].

        Micro-batches of one step share their sampled rows, so only the few positives that were
        not sampled make the buffer grow.
        """
        order = self.rows.argsort()
        known = self.rows[order]
        place = torch.searchsorted(known, rows)
        if len(known):
            found = known[place.clamp(max=len(known) - 1)] == rows
        else:
            found = torch.zeros_like(rows, dtype=torch.bool)
        new = ~found
        if bool(new.any()):
            self.values = torch.cat([self.values, values[new]])
            self.rows = torch.cat([self.rows, rows[new]])
            self.values.index_add_(0, order[place[found]], values[found])
        else:
            self.values.index_add_(0, order[place], values)
