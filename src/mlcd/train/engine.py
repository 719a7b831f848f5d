"""The encoder under DeepSpeed ZeRO: pictures in, embeddings out."""

from __future__ import annotations

import torch

from mlcd.config.train import Train
from mlcd.distributed import Place
from mlcd.encoders.trainable import Encoder
from mlcd.errors import UserError
from mlcd.training.zero import ZeroEngine


class EncoderEngine(ZeroEngine):
    """A :class:`ZeroEngine` of the encoder, which normalises the pictures on its own device."""

    def __init__(self, encoder: Encoder, section: Train, place: Place, micro_batch: int) -> None:
        device = place.device
        self._mean = torch.tensor(encoder.mean, device=device).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(encoder.std, device=device).view(1, 3, 1, 1) * 255
        if section.activation_checkpointing:
            checkpoint_activations(encoder)
        self.encoder = encoder
        super().__init__(encoder, section, place, micro_batch, compiled=section.compile)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Map uint8 pictures [B, 3, H, W] to embeddings float32 [B, d]."""
        images = images.to(self.place.device, non_blocking=True).float()
        return self((images - self._mean) / self._std).float()


def checkpoint_activations(encoder: Encoder) -> None:
    """Recompute activations of the trunk's blocks in the backward pass, where the trunk can.

    Raises :class:`UserError` if it cannot.
    """
    enable = getattr(encoder.trunk, "set_grad_checkpointing", None)
    try:
        if enable is None:
            raise NotImplementedError
        enable(True)
    except (NotImplementedError, AssertionError):
        raise UserError(
            f"train.activation_checkpointing: {encoder.model} does not offer it; set it to false"
        ) from None
