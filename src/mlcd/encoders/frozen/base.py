"""What all frozen encoders share: pixels to floats, unit rows, identity, device."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mlcd.encoders.frozen.preprocess import Preprocess
from mlcd.errors import UserError

_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class FrozenEncoder(ABC):
    """An encoder whose weights never change; made by :func:`mlcd.encoders.frozen.load`.

    Attributes: `dim` (int, d), `pixels` (:class:`Preprocess`, to send to worker processes),
    `device`, `identity` (dict: name, pretrained, weights_sha256, preprocessing, features, dim),
    equal where the features are meant to be.
    """

    def __init__(
        self,
        *,
        name: str,
        pretrained: str | None,
        weights_sha256: str,
        pixels: Preprocess,
        dim: int,
        device: torch.device,
        precision: str,
    ) -> None:
        self.dim = dim
        self.pixels = pixels
        self.device = device
        self.name = name
        self.precision = precision
        self.identity: dict[str, Any] = {
            "name": name,
            "pretrained": pretrained,
            "weights_sha256": weights_sha256,
            "preprocessing": pixels.to_json(),
            "features": "image",
            "dim": dim,
        }
        # One affine step a pixel: (p / 255 − mean) / std = p · scale + shift.
        std = torch.tensor(pixels.std, device=device)
        self._scale = (1 / (255 * std)).view(1, 3, 1, 1)
        self._shift = (-torch.tensor(pixels.mean, device=device) / std).view(1, 3, 1, 1)

    def preprocess(self, image: Image.Image) -> Tensor:
        """Return the uint8 pixels [3, H, W] that the encoder sees of an RGB picture."""
        return torch.from_numpy(np.array(self.pixels(image))).permute(2, 0, 1)

    @torch.inference_mode()
    def encode_images(self, batch: Tensor) -> Tensor:
        """Return unit features float32 [B, d], on the CPU, of uint8 pixels [B, 3, H, W].

        Raises :class:`UserError` if a feature is not finite.
        """
        batch = batch.to(self.device, non_blocking=True).float() * self._scale + self._shift
        with self._autocast():
            features = self._image_features(batch)
        return self._unit(features)

    @torch.inference_mode()
    def encode_texts(self, texts: list[str]) -> Tensor:
        """Return unit features float32 [B, d], on the CPU.

        Raises :class:`UserError` if the model has no text tower or a feature is not finite.
        """
        with self._autocast():
            features = self._text_features(texts)
        return self._unit(features)

    @abstractmethod
    def _image_features(self, batch: Tensor) -> Tensor:
        """Return features [B, d] of normalised floats [B, 3, H, W]."""

    def _text_features(self, texts: list[str]) -> Tensor:
        raise UserError(
            f"embed.features: {self.name} has no text tower; set it to image, or embed.model to an "
            "open_clip model"
        )

    def _autocast(self) -> torch.autocast:
        dtype = _DTYPES[self.precision]
        return torch.autocast(self.device.type, dtype=dtype, enabled=dtype is not None)

    def _unit(self, features: Tensor) -> Tensor:
        features = torch.nn.functional.normalize(features.float(), dim=1).cpu()
        if not torch.isfinite(features).all():
            raise UserError(
                f"embed.precision: {self.name} gives features that are not finite in "
                f"{self.precision}; set it to bf16 or fp32, or check the weights"
            )
        return features


def pick_device(name: str) -> torch.device:
    """Return torch's device; `auto` is cuda if there is one. Raises :class:`UserError`."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--device {name}: cannot be used ({reason}); try cpu") from None
    return device


def weights_sha256(state: dict[str, Tensor]) -> str:
    """Return the hex SHA-256 over names, dtypes, shapes and bytes, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
