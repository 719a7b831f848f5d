"""The encoder of a finished run, frozen: what a text tower is trained against."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from mlcd.data.preprocess import Preprocess
from mlcd.models import trainable
from mlcd.models.frozen.base import FrozenEncoder


class TrainedEncoder(FrozenEncoder):
    """:mod:`mlcd.models.trainable` under the interface of frozen encoders."""

    def __init__(
        self, encoder: trainable.Encoder, sha256: str, device: torch.device, precision: str
    ) -> None:
        side = encoder.image_size
        super().__init__(
            name=encoder.model,
            pretrained=None,
            weights_sha256=sha256,
            pixels=Preprocess((side, side), encoder.mean, encoder.std),
            dim=encoder.embedding_dim,
            device=device,
            precision=precision,
        )
        self._encoder = encoder.eval().to(device)

    @property
    def network(self) -> torch.nn.Module:
        return self._encoder

    def _image_features(self, batch: Tensor) -> Tensor:
        features: Tensor = self._encoder(batch)
        return features


def load(folder: str | os.PathLike[str], device: torch.device, precision: str) -> TrainedEncoder:
    """Load results/train of a run. Raises :class:`UserError` if it is not whole."""
    about = trainable.read_description(folder)
    return TrainedEncoder(trainable.load(folder), about["sha256"], device, precision)
