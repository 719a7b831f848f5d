"""Linear probe: logistic regression on frozen features by L-BFGS (CLIP, arXiv 2103.00020, A.3).

The objective is scikit-learn's, divided by C · n so that its gradient does not grow with the data:

    mean_i loss(x_i W + b, y_i) + |W|² / (2 C n)

with the softmax loss for classes, and the sum of one logistic loss per tag for tags (one-vs-rest:
the tags do not influence one another). The intercept b is not regularized.

Features vary along a few directions far more than along others, and L-BFGS crawls along the rest.
So it moves in the principal axes of the features, and begins each step with about the objective's
curvature along each of them: the same minimum, in fewer steps.

C is found by CLIP's parametric binary search: fits two decades apart over the whole range, then the
interval around the best is halved until the steps are an eighth of a decade. A fit begins between
those on both sides of it, and ends early once it has settled at a score below the best.

The search ends at the first of these C whose fit is right about all rows that it was fitted on.
Larger C mostly scale what separates the rows: the loss is flat there, and a fit ends before its
minimum, at a place that rounding decides, and with it the number of threads. On a few hundred rows
of validation one of them may then win by luck.
"""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from mlcd.stages.evaluate import lbfgs
from mlcd.utils.logging import LOGGER

#: L-BFGS stops when it expects to be no more than this above the minimum. It may be wrong by a
#: factor of a hundred at large C, where few rows are left that the loss depends on. A looser one
#: while C is sought would save time and choose another C: separable rows end the fits at large C
#: before these overfit.
TOLERANCE = 1e-7
#: Steps of the search for C: the finest a decade, and the first in units of it (two decades).
STEPS_A_DECADE = 8
FIRST_STEP = 16
#: How many times what its score has moved lately a fit must be below the best to be ended.
SETTLED = 3.0
#: Steps after which a fit is scored at the latest.
WATCH_EVERY = 10
#: Numbers in a block of rows: on a CPU as many as its caches hold, since a block is used twice.
_BLOCK = {"cpu": 1 << 18, "cuda": 1 << 26}


@dataclass
class Fit:
    """A fitted probe: logits of rows x [n, d] are x @ weight [d, c] + bias [c].

    `excess` is by how much `loss` is above the minimum, as far as the curvature is known, which is
    to be below :data:`TOLERANCE`.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    loss: float
    iterations: int
    excess: float = 0.0

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

    def where(self, chosen: torch.Tensor) -> Rows:
        """Return the rows where `chosen` (bool [n]) in the same axes, with their own variance."""
        part = copy.copy(self)
        part.along = self.along[chosen]
        part.variance = part.along.square().mean(0)
        return part


#: Is asked for a fit on its way, whenever its excess has fallen to a quarter, and after some steps
#: in any case; True ends it there.
Watch = Callable[[Fit], bool]


def fit(
    rows: Rows,
    targets: torch.Tensor,
    c: float,
    max_iterations: int,
    start: Fit | None = None,
    watch: Watch | None = None,
) -> Fit:
    """Fit rows [n, d] to targets: float [n, t] of 0 and 1 (tags), or int64 [n] (classes).

    Classes are 0 … max(targets), all of them present. `start` is a fit of equal shape to begin
    from: the objective is convex, so it saves time and does not change the result. `watch` may end
    the fit before its minimum. Beside the rows, memory for a block of logits is needed, not for all
    of them.
    """
    objective = _Objective(rows, targets, c)
    place = objective.zero()
    if start is not None:
        place[:-1] = rows.axes.T @ start.weight
        place[-1] = start.bias
    before, following, asked = math.inf, math.inf, 0

    def fitted(point: lbfgs.Point) -> Fit:
        weight = rows.axes @ point.place[:-1]
        return Fit(weight, point.place[-1].clone(), point.value, point.iterations, point.excess)

    def done(point: lbfgs.Point) -> bool:
        nonlocal before, following, asked
        # Of two steps, since one alone may look along a direction in which all is done.
        excess, before = max(before, point.excess), point.excess
        if excess <= TOLERANCE:
            return True
        if watch is None or (point.excess > following and point.iterations < asked + WATCH_EVERY):
            return False
        following, asked = min(following, point.excess / 4), point.iterations
        return watch(fitted(point))

    return fitted(
        lbfgs.minimize(objective, place, objective.inverse_curvature, max_iterations, done)
    )


class _Objective:
    """Value and gradient, at weights along the principal axes [d + 1, c]; the bias comes last."""

    def __init__(self, rows: Rows, targets: torch.Tensor, c: float) -> None:
        along = rows.along
        self._n, self._d = along.shape
        self._outputs = targets.shape[1] if targets.ndim == 2 else int(targets.max()) + 1
        self._decay = 1.0 / (c * self._n)
        self._variance = torch.cat([rows.variance, rows.variance.new_ones(1)])
        size = max(1, _BLOCK[along.device.type] // (self._d + self._outputs))
        self._blocks = list(zip(along.split(size), targets.split(size), strict=True))
        self._sure: torch.Tensor | None = None

    def zero(self) -> torch.Tensor:
        """Return weights of zero."""
        return self._variance.new_zeros(self._d + 1, self._outputs)

    def inverse_curvature(self) -> torch.Tensor:
        """Return about one over the second derivatives [d + 1, c] where it was first called.

        As if how sure a row is of a class had nothing to do with where the row lies.
        """
        assert self._sure is not None
        curvature = torch.outer(self._variance, self._sure.clamp(min=1e-8))
        curvature[:-1] += self._decay
        return curvature.reciprocal_()

    def __call__(self, place: torch.Tensor) -> tuple[float, torch.Tensor]:
        weight, bias = place[:-1], place[-1]
        slope = torch.zeros_like(place)
        sure = torch.zeros_like(bias) if self._sure is None else None
        data = torch.zeros((), dtype=torch.float64, device=place.device)
        for block, truth in self._blocks:
            loss, by_logit = _loss_and_slope(torch.addmm(bias, block, weight), truth, sure)
            data += loss
            slope[:-1].addmm_(block.T, by_logit)
            slope[-1] += by_logit.sum(0)
        if sure is not None:
            self._sure = sure / self._n
        slope /= self._n
        slope[:-1].add_(weight, alpha=self._decay)
        penalty = 0.5 * self._decay * weight.square().sum(dtype=torch.float64)
        return float(data / self._n + penalty), slope


def separates(found: Fit, rows: Rows, targets: torch.Tensor) -> bool:
    """True if a fit is right about every row: its class first, or each of its tags.

    `targets`: as in :func:`fit`.
    """
    weight = rows.axes.T @ found.weight
    size = max(1, _BLOCK[weight.device.type] // sum(weight.shape))
    blocks = zip(rows.along.split(size), targets.split(size), strict=True)
    for block, truth in blocks:
        logits = torch.addmm(found.bias, block, weight)
        right = (logits > 0) == (truth > 0) if truth.ndim == 2 else logits.argmax(1) == truth
        if not right.all():
            return False
    return True


def _loss_and_slope(
    logits: torch.Tensor, truth: torch.Tensor, sure: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the loss summed over rows, and its gradient to `logits` [b, c], made in their place.

    `truth` is int64 [b] (softmax over classes) or float [b, c] of 0 and 1 (one-vs-rest). To `sure`
    [c], if given, p (1 - p) is added, the second derivatives.
    """
    if truth.ndim == 2:
        loss = (functional.softplus(logits) - logits * truth).sum()
        _add_curvature(logits.sigmoid_(), sure)
        return loss, logits.sub_(truth)
    places = truth[:, None]
    total = torch.logsumexp(logits, 1, keepdim=True)
    loss = (total - logits.gather(1, places)).sum()
    slope = logits.sub_(total).exp_()
    _add_curvature(slope, sure)
    return loss, slope.scatter_add_(1, places, slope.new_full((1, 1), -1.0).expand(places.shape))


def _add_curvature(probability: torch.Tensor, sure: torch.Tensor | None) -> None:
    if sure is not None:
        sure += (probability - probability.square()).sum(0)


@dataclass
class Chosen:
    """The outcome of :func:`choose`: C, the fit that chose it, and all scores by C, rising.

    `rows` are all rows, those of validation too, for the last fit.
    """

    c: float
    fit: Fit
    scores: dict[float, float]
    rows: Rows


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
    logged, since a better one may lie beyond. A fit that has settled below the best so far
    (:class:`_Settled`) ends early. No C is tried beyond the first that separates the rows.
    """
    low = math.log10(limits[0])
    last = max(1, round((math.log10(limits[1]) - low) * STEPS_A_DECADE))
    whole = Rows(rows)
    fitted, targets_fitted = whole.where(~validation), targets[~validation]
    held, targets_held = rows[validation], targets[validation]
    fits: dict[int, Fit] = {}
    scores: dict[int, float] = {}

    def c_of(step: int) -> float:
        return float(f"{10 ** (low + step / STEPS_A_DECADE):.6g}")

    def scored(found: Fit) -> float:
        return score(found, held, targets_held)

    def look(step: int) -> None:
        if step in fits or not 0 <= step <= last:
            return
        watch = _Settled(scored, max(scores.values())) if scores else None
        start = _between(fits, step)
        fits[step] = fit(fitted, targets_fitted, c_of(step), max_iterations, start, watch)
        scores[step] = scored(fits[step])

    def best() -> int:
        return max(scores, key=lambda step: (scores[step], -step))

    limit = last
    for step in [*range(0, last, FIRST_STEP), last]:
        look(step)
        if separates(fits[step], fitted, targets_fitted):
            last = step
            break
    width = FIRST_STEP // 2
    while width:
        peak = best()
        look(peak - width)
        look(peak + width)
        width //= 2
    peak = best()
    if peak in (0, limit):
        LOGGER.warning(
            "evaluate.probe_c_%s: the best C, %g, is at this end of the range; widen it",
            "max" if peak else "min",
            c_of(peak),
        )
    by_c = {c_of(step): scores[step] for step in sorted(scores)}
    return Chosen(c_of(peak), fits[peak], by_c, whole)


def _between(fits: dict[int, Fit], step: int) -> Fit | None:
    """Return where to begin: on the line between the fits on both sides, or at the only one."""
    below = max((other for other in fits if other < step), default=None)
    above = min((other for other in fits if other > step), default=None)
    if below is None or above is None:
        one = above if below is None else below
        return None if one is None else fits[one]
    share = (step - below) / (above - below)
    weight = torch.lerp(fits[below].weight, fits[above].weight, share)
    return Fit(weight, torch.lerp(fits[below].bias, fits[above].bias, share), math.nan, 0)


class _Settled:
    """Ends a fit (:data:`Watch`) that cannot win any more, as far as its scores say.

    It is below `best` by more than :data:`SETTLED` times what its score moved since it was asked
    the time before last.
    """

    def __init__(self, score: Callable[[Fit], float], best: float) -> None:
        self._score, self._best = score, best
        self._scores: list[float] = []

    def __call__(self, found: Fit) -> bool:
        self._scores.append(self._score(found))
        recent = self._scores[-3:]
        moved = max(recent) - min(recent)
        return len(recent) == 3 and self._best - recent[-1] > SETTLED * moved


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
