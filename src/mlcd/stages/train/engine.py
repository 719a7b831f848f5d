"""The encoder under DeepSpeed ZeRO: images in, embeddings out."""

from __future__ import annotations

import importlib.util
import os
import shutil

import torch
from torch import nn

from mlcd.config.train import Train
from mlcd.launch.process_group import RankPlace
from mlcd.models.layers import lr_scales
from mlcd.models.trainable import Encoder
from mlcd.training.read_ahead import Boxes
from mlcd.training.zero import ZeroEngine
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER


class EncoderEngine(ZeroEngine):
    """A :class:`ZeroEngine` of the encoder, which normalizes the images on its own device."""

    def __init__(
        self, encoder: Encoder, section: Train, place: RankPlace, micro_batch: int
    ) -> None:
        device = place.device
        self._mean = torch.tensor(encoder.mean, device=device).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(encoder.std, device=device).view(1, 3, 1, 1) * 255
        if section.activation_checkpointing:
            checkpoint_activations(encoder)
        self.encoder = encoder
        self._channels_last = is_convolutional(encoder)
        if self._channels_last and not torch.are_deterministic_algorithms_enabled():
            # The fastest kernel for each shape, by trial; who asks for equal bits goes without.
            torch.backends.cudnn.benchmark = True
        super().__init__(
            encoder, section, place, micro_batch, compiled=compiles(section, device),
            lr_scales=lr_scales(encoder, section.layer_decay),
        )  # fmt: skip

    def forward(self, images: torch.Tensor, boxes: Boxes | None = None) -> torch.Tensor:
        """Map uint8 images [B, 3, H, W] to embeddings float32 [B, d], or of what `boxes` says.

        With boxes the encoder is a :class:`mlcd.models.region_encoder.RegionEncoder`.
        """
        images = images.to(self.place.device, non_blocking=True).float()
        images = (images - self._mean) / self._std
        if self._channels_last:
            # Tensor cores and vector units read channels together; layers pass the order on.
            images = images.contiguous(memory_format=torch.channels_last)
        if boxes is None:
            embeddings: torch.Tensor = self(images).float()
            return embeddings
        box, owner = (part.to(self.place.device, non_blocking=True) for part in boxes[:2])
        embeddings = self(images, box, owner, boxes.whole).float()
        return embeddings


def is_convolutional(encoder: Encoder) -> bool:
    """True if most layers are convolutions, and not only the one that cuts patches."""
    convolutions = sum(isinstance(module, nn.Conv2d) for module in encoder.modules())
    return convolutions > sum(isinstance(module, nn.Linear) for module in encoder.modules())


def compiles(section: Train, device: torch.device) -> bool:
    """Return whether the encoder goes through torch.compile on `device`, and say why not."""
    if section.compile is not None:
        return section.compile
    if device.type != "cuda" or section.zero_stage == 3:
        return False
    if lacking := _lacks_for_compiling():
        LOGGER.warning("train.compile: %s is missing here, so the encoder runs eagerly, some 10 "
                       "to 20 %% slower; install it, or set it to false", lacking)  # fmt: skip
        return False
    # What it cannot compile runs eagerly too: nobody has asked for it.
    torch._dynamo.config.suppress_errors = True
    return True


def _lacks_for_compiling() -> str:
    """Return what torch.compile needs on GPUs and is not here, or nothing."""
    if importlib.util.find_spec("triton") is None:
        return "Triton"
    named = os.environ.get("CC")
    if not any(shutil.which(name) for name in ([named] if named else ["gcc", "clang", "cc"])):
        return "a C compiler (gcc)"
    return ""


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
