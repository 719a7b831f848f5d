"""How wide the stage runs: device, threads, decoding, and images per forward pass."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from mlcd.stages.evaluate import feature_models
from mlcd.training import forward
from mlcd.utils.logging import LOGGER

#: Images per forward pass on CPUs, and on GPUs at most: more are no faster.
_ON_CPU, _MOST = 64, 128


@dataclass(frozen=True)
class Resources:
    """How wide the stage runs. No result depends on it, beyond the order of float sums.

    `batch_size`: images per forward pass; None: on GPUs what fits, on CPUs :data:`_ON_CPU`.
    `threads`: of the CPU.
    """

    device: torch.device
    workers: int
    batch_size: int | None
    threads: int = 1

    def batch(self, model: feature_models.FeatureModel) -> int:
        """Return the images per forward pass of `model`. Raises :class:`UserError`.

        What it takes is found by shapes, beside what is free on the GPU by now.
        """
        if model.network is None or self.device.type != "cuda":
            return self.batch_size or _ON_CPU
        room = forward.free(self.device)
        taken = forward.bytes_of(model.network, model.pixels, halves=model.halves)
        if self.batch_size is None:
            size = forward.largest(taken, room, _MOST)
            LOGGER.info("%d images at once", size or 1)
            forward.require("--batch-size", size or 1, taken, room)
            return size
        forward.require("--batch-size", self.batch_size, taken, room)
        return self.batch_size
