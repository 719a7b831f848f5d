"""L-BFGS for convex functions, on tensors of any device (Nocedal and Wright, Algorithm 7.5).

torch's own takes a second of processor time to load what it needs, has no room for what is known
of the curvature, and waits for the device some twenty times per step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import torch

#: Steps that are remembered.
_HISTORY = 10
#: Share of the decrease that the slope promises which a step must bring, and of the slope which may
#: be left at its end where rounding hides the decrease (Hager and Zhang 2005, 4.1).
_DECREASE, _FLAT = 1e-4, 0.9
#: What rounding may add to the value, in units of it.
_ROUNDING = 1e-6
_TRIES = 20


class Point(NamedTuple):
    """Where the search is: place and gradient of equal shape, the value there, steps so far.

    `excess` is by how much the value is above the minimum, as far as the curvature is known: half
    of what the slope promises of a whole step (the decrement of a quasi-Newton method).
    """

    place: torch.Tensor
    value: float
    gradient: torch.Tensor
    iterations: int
    excess: float = float("inf")


def minimize(
    function: Callable[[torch.Tensor], tuple[float, torch.Tensor]],
    start: torch.Tensor,
    inverse_curvature: Callable[[], torch.Tensor],
    max_iterations: int,
    done: Callable[[Point], bool],
) -> Point:
    """Go downhill from `start` until `done`, `max_iterations`, or no step makes the value less.

    `function` returns value and gradient at a place. `inverse_curvature`, of the place's shape and
    positive, is about one over the second derivatives, what the method begins with at each step. It
    is asked for once the function was called at `start`.
    """
    point = Point(start, *function(start), 0)
    diagonal = inverse_curvature()
    steps: deque[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = deque(maxlen=_HISTORY)
    while True:
        direction = _direction(point.gradient, steps, diagonal)
        slope = float(_dot(point.gradient, direction))
        point = point._replace(excess=-slope / 2)
        if done(point) or point.iterations >= max_iterations:
            return point
        following = _step(function, point, direction, slope)
        if following is None and steps:
            # What is remembered misleads where rounding has spoiled it: once more without.
            steps.clear()
            continue
        if following is None:
            return point
        moved = following.place - point.place
        turned = following.gradient - point.gradient
        product = _dot(moved, turned)
        if float(product) > 0:
            steps.append((moved, turned, 1 / product))
        point = following


def _direction(
    gradient: torch.Tensor,
    steps: deque[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    inverse_curvature: torch.Tensor,
) -> torch.Tensor:
    """Return minus the gradient times the inverse of the curvature, as far as `steps` show it."""
    direction = -gradient
    shares = []
    for moved, turned, inverse in reversed(steps):
        share = inverse * _dot(moved, direction)
        direction -= share * turned
        shares.append(share)
    direction *= inverse_curvature
    if steps:
        _, turned, inverse = steps[-1]
        direction /= inverse * _dot(turned, inverse_curvature * turned)
    for (moved, turned, inverse), share in zip(steps, reversed(shares), strict=True):
        direction += (share - inverse * _dot(turned, direction)) * moved
    return direction


def _step(
    function: Callable[[torch.Tensor], tuple[float, torch.Tensor]],
    point: Point,
    direction: torch.Tensor,
    slope: float,
) -> Point | None:
    """Return the point after a step along `direction` that is short enough, None if none is."""
    length = 1.0
    for _ in range(_TRIES):
        place = point.place + length * direction
        value, gradient = function(place)
        rise = value - point.value
        if rise <= _DECREASE * length * slope or (
            rise <= _ROUNDING * abs(point.value)
            and abs(float(_dot(gradient, direction))) <= _FLAT * -slope
        ):
            return Point(place, value, gradient, point.iterations + 1)
        # The lowest point of the parabola through both values with this slope; infinite values end
        # at the least share.
        bend = rise - length * slope
        lowest = -slope * length / (2 * bend) if 0 < bend < float("inf") else 0.0
        length *= min(0.5, max(0.1, lowest))
    return None


def _dot(one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    return torch.dot(one.flatten(), other.flatten())
