"""Linear probe: logistic regression on frozen features by L-BFGS (CLIP, arXiv 2103.00020, A.3).

The objective is scikit-learn's, divided by C · n so that its gradient does not grow with the data:

    mean_i loss(x_i W + b, y_i) + |W|² / (2 C n)

with the softmax loss for classes, and the sum of one logistic loss per tag for tags (one-vs-rest:
the tags do not influence one another). The intercept b is not regularized.

Features vary along a few directions far more than along others, and L-BFGS crawls along the rest.
So it moves in the principal axes of the features, each stretched by about the square root of the
objective's curvature there: the same minimum, in fewer steps.

C is found by CLIP's parametric binary search: fits two decades apart over the whole range, then the
interval around the best is halved until the steps are an eighth of a decade.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from mlcd.utils.logging import LOGGER

#: L-BFGS stops when no entry of the gradient, in the stretched axes, exceeds this. A looser one
#: while C is sought would save time and choose another C: separable rows end the fits at large C
#: before these overfit.
GRADIENT_TOLERANCE = 1e-4
#: Steps of the search for C: the finest a decade, and the first in units of it (two decades).
STEPS_A_DECADE = 8
FIRST_STEP = 16
#: Numbers in a block of rows: on a CPU as many as its caches hold, since a block is used twice.
_BLOCK = {"cpu": 1 << 18, "cuda": 1 << 26}


@dataclass
class Fit:
    """A fitted probe: logits of rows x [n, d] are x @ weight [d, c] + bias [c].

    `gradient` is its largest entry at the end, which is to be below :data:`GRADIENT_TOLERANCE`.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    loss: float
    iterations: int
    gradient: float = 0.0

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        return rows @ self.weight + self.bias


class Rows:
    """Rows float [n, d] to fit on, turned to their principal axes once for all fits.

    Columns that are zero throughout, as ReLU leaves them, have no axis: their weights are zero.
    """

    def __init__(self, rows: torch.Tensor) -> None:
        alive = (rows != 0).any(0)
        covariance = (rows.T @ rows / len(rows))[alive][:, alive]
        # In float64: rows of fewer dimensions than columns break float32's.
        variance, axes = torch.linalg.eigh(covariance.double())
        self.variance = variance.clamp(min=0).to(rows.dtype)
        self.axes = torch.zeros(len(alive), len(variance), dtype=rows.dtype, device=rows.device)
        self.axes[alive] = axes.to(rows.dtype)
        self.along = rows @ self.axes


def fit(
    rows: Rows,
    targets: torch.Tensor,
    c: float,
    max_iterations: int,
    start: Fit | None = None,
) -> Fit:
    """Fit rows [n, d] to targets: float [n, t] of 0 and 1 (tags), or int64 [n] (classes).

    Classes are 0 … max(targets), all of them present. `start` is a fit of equal shape to begin
    from: the objective is convex, so it saves time and does not change the result. Beside the rows,
    memory for a block of logits is needed, not for all of them.
    """
    along = rows.along
    n, d = along.shape
    share = targets.mean(0) if targets.ndim == 2 else torch.bincount(targets) / n
    outputs = len(share)
    decay = 1.0 / (c * n)
    # p (1 - p) is the curvature at the start; it falls as the fit grows sure, hence the tenth.
    curvature = max(0.1 * float((share * (1 - share)).mean()), 1e-8)
    stretch = (curvature * rows.variance + decay).rsqrt()[:, None]
    stretch_bias = curvature**-0.5
    penalty = decay * stretch.square()
    # One tensor [d + 1, c], the bias its last row, so that L-BFGS moves one parameter.
    solution = torch.zeros(d + 1, outputs, dtype=along.dtype, device=along.device)
    if start is not None:
        solution[:-1] = rows.axes.T @ start.weight / stretch
        solution[-1] = start.bias / stretch_bias
    slope = solution.grad = torch.empty_like(solution)
    size = max(1, _BLOCK[along.device.type] // (d + outputs))
    blocks = list(zip(along.split(size), targets.split(size), strict=True))

    def objective() -> torch.Tensor:
        weight, bias = solution[:-1] * stretch, solution[-1] * stretch_bias
        slope_weight, slope_bias = torch.zeros_like(weight), torch.zeros_like(bias)
        data = torch.zeros((), dtype=torch.float64, device=along.device)
        for block, truth in blocks:
            loss, by_logit = _loss_and_slope(torch.addmm(bias, block, weight), truth)
            data += loss
            slope_weight.addmm_(block.T, by_logit)
            slope_bias += by_logit.sum(0)
        torch.add(slope_weight * (stretch / n), penalty * solution[:-1], out=slope[:-1])
        torch.mul(slope_bias, stretch_bias / n, out=slope[-1])
        strength: torch.Tensor = 0.5 * (penalty * solution[:-1].square()).sum()
        return (data / n).to(along.dtype) + strength

    optimizer = torch.optim.LBFGS(
        [solution],
        max_iter=max_iterations,
        max_eval=2 * max_iterations,
        tolerance_grad=GRADIENT_TOLERANCE,
        tolerance_change=0.0,
        history_size=10,
        line_search_fn="strong_wolfe",
    )
    with torch.no_grad():
        optimizer.step(objective)
        loss = float(objective())
    weight = rows.axes @ (solution[:-1] * stretch)
    iterations = optimizer.state[solution]["n_iter"]
    gradient = float(slope.abs().max())
    return Fit(weight, solution[-1] * stretch_bias, loss, iterations, gradient)


def _loss_and_slope(logits: torch.Tensor, truth: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss summed over rows, and its gradient to `logits` [b, c], made in their place.

    `truth` is int64 [b] (softmax over classes) or float [b, c] of 0 and 1 (one-vs-rest).
    """
    if truth.ndim == 2:
        loss = (functional.softplus(logits) - logits * truth).sum()
        return loss, logits.sigmoid_().sub_(truth)
    places = truth[:, None]
    total = torch.logsumexp(logits, 1, keepdim=True)
    loss = (total - logits.gather(1, places)).sum()
    slope = logits.sub_(total).exp_()
    return loss, slope.scatter_add_(1, places, slope.new_full((1, 1), -1.0).expand(places.shape))


@dataclass
class Chosen:
    """The outcome of :func:`choose`: C, the fit that chose it, and all scores by C, rising."""

    c: float
    fit: Fit
    scores: dict[float, float]


def choose(
    rows: torch.Tensor,
    targets: torch.Tensor,
    validation: torch.Tensor,
    limits: tuple[float, float],
    max_iterations: int,
    score: Callable[[Fit, torch.Tensor, torch.Tensor], float],
) -> Chosen:
    """Choose C within `limits`: fit on the rows outside `validation` (bool [n]), score on the rest.

    CLIP's parametric binary search (arXiv 2103.00020, A.3). `score(fit, rows, targets)` is better
    when larger; among equals the smallest C, the simplest probe, wins. A winner at a limit is
    logged, since a better one may lie beyond.
    """
    low = math.log10(limits[0])
    last = max(1, round((math.log10(limits[1]) - low) * STEPS_A_DECADE))
    fitted, targets_fitted = Rows(rows[~validation]), targets[~validation]
    held, targets_held = rows[validation], targets[validation]
    fits: dict[int, Fit] = {}
    scores: dict[int, float] = {}

    def c_of(step: int) -> float:
        return float(f"{10 ** (low + step / STEPS_A_DECADE):.6g}")

    def look(step: int) -> None:
        if step in fits or not 0 <= step <= last:
            return
        nearest = min(fits, key=lambda other: abs(other - step), default=None)
        start = None if nearest is None else fits[nearest]
        fits[step] = fit(fitted, targets_fitted, c_of(step), max_iterations, start)
        scores[step] = score(fits[step], held, targets_held)

    def best() -> int:
        return max(scores, key=lambda step: (scores[step], -step))

    for step in [*range(0, last, FIRST_STEP), last]:
        look(step)
    width = FIRST_STEP // 2
    while width:
        peak = best()
        look(peak - width)
        look(peak + width)
        width //= 2
    peak = best()
    if peak in (0, last):
        LOGGER.warning(
            "evaluate.probe_c_%s: the best C, %g, is at this end of the range; widen it",
            "max" if peak else "min",
            c_of(peak),
        )
    return Chosen(c_of(peak), fits[peak], {c_of(step): scores[step] for step in sorted(scores)})


def validation_rows(
    names: list[bytes], share: float, seed: int, label: np.ndarray | None = None
) -> np.ndarray:
    """Return bool [n]: the rows of a `share` of the groups, to choose C on.

    `names` [n] says which group a row is of: its group's name, or its own key. Rows of one group
    stay on one side. Groups are taken in the order of a hash of `seed` and name, so that images
    added or left out change no other's side, but for the last ones'. With `label` (int [n]), groups
    without which a class would have no row left to fit on stay outside.
    """
    distinct, group = np.unique(np.array(names, dtype="S"), return_inverse=True)
    digests = [hashlib.sha256(b"%d %s" % (seed, name)).digest() for name in distinct.tolist()]
    order = sorted(range(len(digests)), key=digests.__getitem__)
    held = np.isin(group, order[: max(1, round(share * len(order)))])
    if label is not None:
        lost = held & ~np.isin(label, label[~held])
        held &= ~np.isin(group, group[lost])
    return held


@dataclass
class Scale:
    """Center by the train mean and divide by one number: unit variance on average over columns.

    One number for all columns keeps angles as they are, and makes C mean the same for all models.
    """

    mean: torch.Tensor
    divisor: float

    @classmethod
    def of(cls, rows: torch.Tensor) -> Scale:
        mean = rows.mean(0)
        return cls(mean, max(float((rows - mean).square().mean().sqrt()), 1e-12))

    def __call__(self, rows: torch.Tensor) -> torch.Tensor:
        return (rows - self.mean) / self.divisor
