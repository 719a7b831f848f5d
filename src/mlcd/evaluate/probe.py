"""Linear probe: logistic regression on frozen features by L-BFGS (CLIP, arXiv 2103.00020, A.3).

The objective is scikit-learn's, divided by C · n so that its gradient does not grow with the data:

    mean_i loss(x_i W + b, y_i) + |W|² / (2 C n)

with the softmax loss for classes, and the sum of one logistic loss a tag for tags (one-vs-rest:
the tags do not influence one another). The intercept b is not regularised.

Features vary along a few directions far more than along others, and L-BFGS crawls along the rest.
So it moves in the principal axes of the features, each stretched by about the square root of the
objective's curvature there: the same minimum in a quarter of the time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from mlcd.progress import LOGGER

#: L-BFGS stops when no entry of the gradient, in the stretched axes, exceeds this. The loss is
#: then within some 1e-5 of its minimum.
GRADIENT_TOLERANCE = 1e-4
#: The same while C is chosen, where fits are compared by rows put right, not by their loss.
ROUGH_TOLERANCE = 1e-3


@dataclass
class Fit:
    """A fitted probe: logits of rows x [n, d] are x @ weight [d, c] + bias [c]."""

    weight: torch.Tensor
    bias: torch.Tensor
    loss: float
    iterations: int

    def logits(self, rows: torch.Tensor) -> torch.Tensor:
        return rows @ self.weight + self.bias


class Rows:
    """Rows float [n, d] to fit on, with their principal axes, found once for all fits."""

    def __init__(self, rows: torch.Tensor) -> None:
        variance, self.axes = torch.linalg.eigh(rows.T @ rows / len(rows))
        self.variance = variance.clamp(min=0)
        self.along = rows @ self.axes


def fit(
    rows: Rows,
    targets: torch.Tensor,
    c: float,
    max_iterations: int,
    start: Fit | None = None,
    tolerance: float = GRADIENT_TOLERANCE,
) -> Fit:
    """Fit rows [n, d] to targets: float [n, t] of 0 and 1 (tags), or int64 [n] (classes).

    Classes are 0 … max(targets), all of them present. `start` is a fit of equal shape to begin
    from: the objective is convex, so it saves time and does not change the result.
    """
    along = rows.along
    multinomial = targets.ndim == 1
    if multinomial:
        targets = functional.one_hot(targets).to(along.dtype)
    n, outputs = targets.shape
    decay = 1.0 / (c * n)
    share = targets.mean(0)
    # p (1 - p) is the curvature at the start; it falls as the fit grows sure, hence the tenth.
    curvature = max(0.1 * float((share * (1 - share)).mean()), 1e-8)
    stretch = (curvature * rows.variance + decay).rsqrt()
    stretch_bias = curvature**-0.5
    stretched = along * stretch
    penalty = (decay * stretch.square())[:, None]
    # One tensor [d + 1, c], the bias its last row, so that L-BFGS moves one parameter.
    solution = torch.zeros(len(stretch) + 1, outputs, dtype=along.dtype, device=along.device)
    if start is not None:
        solution[:-1] = rows.axes.T @ start.weight / stretch[:, None]
        solution[-1] = start.bias / stretch_bias
    solution.grad = torch.empty_like(solution)

    def objective() -> torch.Tensor:
        weight, bias = solution[:-1], solution[-1] * stretch_bias
        logits = torch.addmm(bias, stretched, weight)
        if multinomial:
            data = (torch.logsumexp(logits, 1) - (logits * targets).sum(1)).mean()
            slope = (torch.softmax(logits, 1) - targets) / n
        else:
            data = (functional.softplus(logits) - logits * targets).sum(1).mean()
            slope = (torch.sigmoid(logits) - targets) / n
        torch.mm(stretched.T, slope, out=solution.grad[:-1])
        solution.grad[:-1] += penalty * weight
        solution.grad[-1] = slope.sum(0) * stretch_bias
        return data + 0.5 * (penalty * weight.square()).sum()

    optimiser = torch.optim.LBFGS(
        [solution],
        max_iter=max_iterations,
        max_eval=2 * max_iterations,
        tolerance_grad=tolerance,
        tolerance_change=0.0,
        history_size=10,
        line_search_fn="strong_wolfe",
    )
    with torch.no_grad():
        optimiser.step(objective)
        loss = float(objective())
    weight = rows.axes @ (solution[:-1] * stretch[:, None])
    iterations = optimiser.state[solution]["n_iter"]
    return Fit(weight, solution[-1] * stretch_bias, loss, iterations)


@dataclass
class Chosen:
    """The outcome of :func:`choose`: C, the fit that chose it, and all scores by C."""

    c: float
    fit: Fit
    scores: dict[float, float]


def choose(
    rows: torch.Tensor,
    targets: torch.Tensor,
    validation: torch.Tensor,
    candidates: list[float],
    max_iterations: int,
    score: Callable[[Fit, torch.Tensor, torch.Tensor], float],
) -> Chosen:
    """Choose C: fit on the rows outside `validation` (bool [n]), score on those inside.

    `score(fit, rows, targets)` is better when larger; among equals the smallest C, the simplest
    probe, wins. A winner at the end of the candidates is logged, since a better one may lie beyond.
    """
    scores: dict[float, float] = {}
    fits: dict[float, Fit] = {}
    fitted, latest = Rows(rows[~validation]), None
    for c in sorted(candidates):
        latest = fits[c] = fit(
            fitted, targets[~validation], c, max_iterations, latest, ROUGH_TOLERANCE
        )
        scores[c] = score(latest, rows[validation], targets[validation])
    best = max(scores, key=lambda c: (scores[c], -c))
    if len(scores) > 1 and best in (min(scores), max(scores)):
        LOGGER.warning(
            "evaluate.probe_regularisation: the best C, %g, is the %s candidate; widen the list",
            best,
            "smallest" if best == min(scores) else "largest",
        )
    return Chosen(best, fits[best], scores)


def validation_rows(
    group: np.ndarray, share: float, seed: int, label: np.ndarray | None = None
) -> np.ndarray:
    """Return bool [n]: the rows of a `share` of the groups (int [n]), drawn from `seed`.

    Rows of one group stay on one side. With `label` (int [n]), groups without which a class would
    have no row left to fit on stay outside.
    """
    groups = np.unique(group)
    drawn = np.random.default_rng(seed).permutation(groups)[: max(1, round(share * len(groups)))]
    held = np.isin(group, drawn)
    if label is not None:
        lost = held & ~np.isin(label, label[~held])
        held &= ~np.isin(group, group[lost])
    return held


@dataclass
class Scale:
    """Centre by the train mean and divide by one number: unit variance on average over columns.

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
