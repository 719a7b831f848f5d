"""AdamW that reads, updates and decays only the rows that a step touched."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mlcd.classifier.sharded import ShardedClassifier
from mlcd.losses.objective import unit_rows


class RowSparseAdamW:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101) over the rows with a gradient.

    A row that no step touches keeps its value and its moments; its first touch corrects their bias
    as the first step of dense AdamW does, because each row counts its own steps. Where every row
    is touched at each step, the result is that of :class:`torch.optim.AdamW`.

    classifier: holds `weight` and `gradient`. lr, betas, eps, weight_decay: as in AdamW; the decay
    is decoupled and applies to a touched row only. renormalize: set each touched row to length 1
    after its update (the loss does not depend on a row's length, but AdamW lets it grow, which
    slows the row's turning).
    """

    def __init__(
        self,
        classifier: ShardedClassifier,
        lr: float,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        renormalize: bool = False,
    ) -> None:
        if lr < 0 or eps < 0 or weight_decay < 0:
            raise ValueError("lr, eps, weight_decay: expected numbers that are not negative")
        if not all(0 <= beta < 1 for beta in betas):
            raise ValueError(f"betas {betas}: expected numbers from 0 to below 1")
        self.classifier = classifier
        self.lr, self.betas, self.eps, self.weight_decay = lr, betas, eps, weight_decay
        self.renormalize = renormalize
        weight = classifier.weight
        self.exp_avg = torch.zeros_like(weight, requires_grad=False)
        self.exp_avg_sq = torch.zeros_like(weight, requires_grad=False)
        self.row_step = torch.zeros(len(weight), dtype=torch.int64, device=weight.device)

    def zero_grad(self) -> None:
        """Drop the rows' gradient."""
        self.classifier.zero_grad()

    @torch.no_grad()
    def grad_norm(self) -> Tensor:
        """Return the norm of the whole gradient, over all shards, float64; collective."""
        total = torch.zeros((), dtype=torch.float64, device=self.classifier.weight.device)
        if self.classifier.gradient is not None:
            total = torch.linalg.vector_norm(self.classifier.gradient.values).double().square()
        self.classifier.exchange.add(total)
        return total.sqrt()

    @torch.no_grad()
    def clip(self, max_norm: float) -> Tensor:
        """Scale the gradient so that its norm over all shards is at most `max_norm`; collective.

        Returns the norm before, float64.
        """
        norm = self.grad_norm()
        if self.classifier.gradient is not None:
            factor = (max_norm / norm.clamp(min=1e-30)).clamp(max=1.0)
            self.classifier.gradient.values.mul_(factor.float())
        return norm

    @torch.no_grad()
    def step(self, lr: float | None = None) -> None:
        """Update the rows that have a gradient, with learning rate `lr` (default: the built one).

        The gradient stays until :meth:`zero_grad`.
        """
        gradient = self.classifier.gradient
        if gradient is None:
            return
        lr = self.lr if lr is None else lr
        first_beta, second_beta = self.betas
        weight = self.classifier.weight.data
        # New memory for each part would be mapped and given back each time.
        size = min(self._part_size(), len(gradient.rows))
        buffers = [weight.new_empty(size, weight.shape[1]) for _ in range(3)]
        for part in self._parts(len(gradient.rows)):
            rows, value = gradient.rows[part], gradient.values[part]
            count = self.row_step.index_select(0, rows) + 1
            self.row_step.index_copy_(0, rows, count)
            average, square, row = (buffer[: len(rows)] for buffer in buffers)
            torch.index_select(self.exp_avg, 0, rows, out=average)
            average.lerp_(value, 1 - first_beta)
            _put_rows(self.exp_avg, rows, average)
            torch.index_select(self.exp_avg_sq, 0, rows, out=square)
            square.mul_(second_beta).addcmul_(value, value, value=1 - second_beta)
            _put_rows(self.exp_avg_sq, rows, square)

            # lr · (m / c₁) / (√v / c₂ + eps) as lr · m / (√v · c₁ / c₂ + eps · c₁): fewer passes.
            count = count[:, None].double()
            first = 1 - first_beta**count
            ratio = (first / (1 - second_beta**count).sqrt()).to(value.dtype)
            least = (self.eps * first).to(value.dtype)
            root = square.sqrt_().mul_(ratio).add_(least)
            torch.index_select(weight, 0, rows, out=row)
            row.mul_(1 - lr * self.weight_decay).addcdiv_(average, root, value=-lr)
            _put_rows(weight, rows, unit_rows(row) if self.renormalize else row)

    def state_tensors(self) -> dict[str, Tensor]:
        """Return the state itself, not a copy, in the order of the shard's rows.

        exp_avg and exp_avg_sq: float32 [rows, d]; row_step: int64 [rows].
        """
        names = ("exp_avg", "exp_avg_sq", "row_step")
        return {name: getattr(self, name) for name in names}

    @torch.no_grad()
    def load_state_tensors(self, state: dict[str, Tensor]) -> None:
        """Copy in what :meth:`state_tensors` returned for the same rows.

        Raises ValueError if a tensor is missing or has another shape.
        """
        for name, own in self.state_tensors().items():
            if name not in state or state[name].shape != own.shape:
                found = tuple(state[name].shape) if name in state else "nothing"
                raise ValueError(f"{name}: expected {tuple(own.shape)}, found {found}")
            own.copy_(state[name])

    def _part_size(self) -> int:
        """Rows at a time: few enough that the working copies stay in a CPU's cache."""
        size = 64 << 20 if self.classifier.weight.is_cuda else 512 << 10
        return max(1, size // (4 * self.classifier.dim))

    def _parts(self, count: int) -> Iterator[slice]:
        rows = self._part_size()
        for first in range(0, count, rows):
            yield slice(first, first + rows)


def _put_rows(matrix: Tensor, rows: Tensor, values: Tensor) -> None:
    """Set matrix[rows] = values in place; rows: distinct, int64 [n]; values: [n, d]."""
    if matrix.device.type == "cpu" and type(values) is Tensor:
        # A fifth to a half of the time of torch's index_copy_ where the rows are in cache.
        matrix.numpy()[rows.numpy()] = values.numpy()
    else:  # on a GPU, or a stand-in that has shapes and no numbers
        matrix.index_copy_(0, rows, values)
