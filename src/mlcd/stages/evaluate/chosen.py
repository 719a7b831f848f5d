"""What the linear probes of classes and of tags share: rows to fit on, and the choice of C."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch

from mlcd.config import Evaluate
from mlcd.stages.evaluate import probe
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER

#: Digits after the point of every score. With n test images a score moves in steps of 1 / n.
DIGITS = 4


class Images(Protocol):
    """n images of a data set: `label` int64 [n], −1 where there is none; `classes` of them."""

    dataset: str
    label: np.ndarray

    @property
    def classes(self) -> int:
        """Number of classes."""

    def on(self, *splits: str) -> np.ndarray:
        """Return bool [n]: the images of these splits."""


def sides(data: Images) -> tuple[np.ndarray, np.ndarray]:
    """Return bool [n] twice: images to learn from, and to test on.

    Raises :class:`UserError` if there is none of either.
    """
    train, test = data.on("train", "validation"), data.on("test")
    for side, chosen in (("train", train), ("test", test)):
        if not chosen.any():
            raise UserError(
                f"evaluate.datasets: {data.dataset} has no {side} images; see split_field"
            )
    return train, test


class Rows(Protocol):
    """n rows of a data set, images or objects in them: `split` words [n]; `group_name`, n bytes."""

    dataset: str
    split: np.ndarray
    group_name: list[bytes]


def held_out(
    section: Evaluate, data: Rows, train: np.ndarray, label: np.ndarray | None = None
) -> np.ndarray:
    """Return which of the `train` rows (bool [n], validation among them) choose C: bool [train].

    The set's own validation split, or else a share of train, cut by a hash of group or key.
    Raises :class:`UserError` if one side is empty.
    """
    held: np.ndarray = data.split[train] == "validation"
    if not held.any():
        names = [data.group_name[row] for row in np.flatnonzero(train)]
        held = probe.validation_rows(names, section.validation_share, section.seed, label)
    if label is not None:
        # A class that only validation has could not be fitted: its images stay in the fit.
        held = held & np.isin(label, label[~held])
    if not held.any() or held.all():
        raise UserError(
            f"evaluate.validation_share: {section.validation_share:g} of the train images of "
            f"{data.dataset} leaves none on one side; change it, or the set's group_field"
        )
    return held


class Named(Protocol):
    """Whose features of which data set they are."""

    model: str
    dataset: str


def fitted_probe(
    section: Evaluate,
    data: Named,
    rows: torch.Tensor,
    targets: torch.Tensor,
    held: np.ndarray,
    scorer: Callable[[probe.Fit, torch.Tensor, torch.Tensor], float],
) -> tuple[probe.Fit, dict[str, Any]]:
    """Choose C by `scorer` on the `held` rows (bool [n]), then fit on all `rows` float [n, d].

    Return the fit, and what JSON says of it.
    """
    iterations = section.probe_max_iterations
    validation = torch.from_numpy(held).to(rows.device)
    limits = (section.probe_c_min, section.probe_c_max)
    choice = probe.choose(rows, targets, validation, limits, iterations, scorer)
    fitted = probe.fit(choice.rows, targets, choice.c, iterations, start=choice.fit)
    if fitted.iterations >= iterations:
        LOGGER.warning(
            "evaluate.probe_max_iterations: the probe of %s on %s stopped at %d; raise it",
            data.model,
            data.dataset,
            iterations,
        )
    elif fitted.excess > 10 * probe.TOLERANCE:
        LOGGER.warning(
            "the probe of %s on %s ended at iteration %d about %.1e above the least loss: no "
            "step found made it less; its score may be too low",
            data.model, data.dataset, fitted.iterations, fitted.excess,
        )  # fmt: skip
    return fitted, {
        "dim": rows.shape[1],
        "c": choice.c,
        "validation_images": int(held.sum()),
        "validation_score": {f"{c:g}": round(s, DIGITS) for c, s in choice.scores.items()},
        "iterations": fitted.iterations,
    }
