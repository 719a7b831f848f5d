"""The phases of a run, and learning rates over each: linear warm-up, then a decay to zero."""

from __future__ import annotations

import math
from typing import NamedTuple

from mlcd.config.train import Train


class Phase(NamedTuple):
    """Steps `first` … `last` − 1 of a run, at one image size (pixels), with their peak rates."""

    first: int
    last: int
    image_size: int
    lr: float
    classifier_lr: float

    def factor(self, step: int, section: Train) -> float:
        """Return the share of the peak rates at a step of this phase, in (0, 1]."""
        return factor(
            step - self.first, self.last - self.first, section.warmup_steps, section.schedule
        )


def phases(section: Train, steps_per_epoch: int) -> list[Phase]:
    """Return the run's one phase, or two with a high-resolution stage."""
    last = section.epochs * steps_per_epoch
    found = [Phase(0, last, section.image_size, section.lr, section.classifier_lr)]
    if section.high_res_image_size is not None:
        lr = section.high_res_lr
        end = last + section.high_res_epochs * steps_per_epoch
        # The centres' rate falls by the same factor as the encoder's.
        centres = section.classifier_lr * lr / section.lr
        found.append(Phase(last, end, section.high_res_image_size, lr, centres))
    return found


def factor(step: int, total: int, warmup: int, schedule: str) -> float:
    """Return the share of the peak learning rate at `step` (0 … `total` − 1), in (0, 1].

    Warm-up rises linearly and reaches the peak at step `warmup` − 1; at most half of a short run
    is warm-up. Then `schedule` is ``cosine`` or ``linear`` (towards 0 after the last step) or
    ``constant``.
    """
    warmup = min(warmup, total // 2)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "linear":
        return 1 - progress
    return 1.0
