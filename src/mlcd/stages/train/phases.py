"""The phases of a run, each with its image size and peak learning rates."""

from __future__ import annotations

from typing import NamedTuple

from mlcd.config.train import Train
from mlcd.training.lr_schedule import factor


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
        # The centers' rate falls by the same factor as the encoder's.
        centers = section.classifier_lr * lr / section.lr
        found.append(Phase(last, end, section.high_res_image_size, lr, centers))
    return found
