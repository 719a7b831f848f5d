"""What all frozen encoders share: pixels to floats, unit rows, identity, device."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mlcd.data.preprocess import Preprocess
from mlcd.models import slices
from mlcd.utils.errors import UserError

DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


class FrozenEncoder(ABC):
    """An encoder whose weights never change; made by :func:`mlcd.models.frozen.load`.

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
        #: Of the weights, where they are not float32: no product is then converted.
        self._halved: torch.dtype | None = None
        self.identity: dict[str, Any] = {
            "name": name,
            "pretrained": pretrained,
            "weights_sha256": weights_sha256,
            "preprocessing": pixels.to_json(),
            "features": "image",
            "dim": dim,
        }
        # One affine step per pixel: (p / 255 − mean) / std = p · scale + shift.
        std = torch.tensor(pixels.std, device=device)
        self._scale = (1 / (255 * std)).view(1, 3, 1, 1)
        self._shift = (-torch.tensor(pixels.mean, device=device) / std).view(1, 3, 1, 1)
        if device.type == "cuda":
            self._copies = torch.cuda.Stream(device)

    def preprocess(self, image: Image.Image) -> Tensor:
        """Return the uint8 pixels [3, H, W] that the encoder sees of an RGB image."""
        return torch.from_numpy(np.array(self.pixels(image))).permute(2, 0, 1)

    def encode_images(self, batch: Tensor, *, check: bool = True) -> Tensor:
        """Return unit features float32 [B, d], on the CPU, of uint8 pixels [B, 3, H, W].

        Raises :class:`UserError` if a feature is not finite; without `check` it comes as it is.
        """
        features = self.start_images(batch)()
        if check:
            self.require_finite(features)
        return features

    @torch.inference_mode()
    def start_images(self, batch: Tensor) -> Callable[[], Tensor]:
        """Begin to encode uint8 pixels [B, 3, H, W]; return what waits for the features.

        These are as :meth:`encode_images` returns them, unchecked. `batch` may be written over when
        this returns. On a GPU all is queued, the copies too: the next batch can be given at once.
        """
        if self.device.type == "cpu":
            # By slices: floats of a whole batch are more than an allocator keeps, and so new memory
            # from the system each time.
            (unit,) = slices.forward(self._unit_of_pixels, batch)
        else:
            (unit,) = self._unit_of_pixels(batch)
        assert unit is not None
        if unit.device.type != "cuda":
            return lambda: unit
        host = torch.empty(unit.shape, dtype=unit.dtype, pin_memory=True)
        host.copy_(unit, non_blocking=True)
        done = torch.cuda.Event()
        done.record()

        def wait() -> Tensor:
            done.synchronize()
            return host

        return wait

    @torch.inference_mode()
    def _unit_of_pixels(self, batch: Tensor) -> tuple[Tensor]:
        """Return unit features float32 [B, d] of uint8 pixels [B, 3, H, W]."""
        return self._unit(self.normalized(batch))

    @torch.inference_mode()
    def _unit(self, images: Tensor) -> tuple[Tensor]:
        """Return unit features float32 [B, d] of normalized images."""
        with self._autocast():
            features = self._image_features(images)
        return (torch.nn.functional.normalize(features.float(), dim=1),)

    def normalized(self, batch: Tensor) -> Tensor:
        """Return uint8 pixels [B, 3, H, W] as the encoder takes them: (p / 255 − mean) / std.

        On its device, and with the strides of `batch` where these leave no gaps.
        """
        if self.device.type == "cuda":
            batch = self._copied(batch)
        floats = batch.to(self.device).float()
        if floats.is_contiguous(memory_format=torch.channels_last):
            # By rows of pixels: a factor for each of three neighbors is no work for a vector unit.
            width = floats.shape[3]
            rows = floats.permute(0, 2, 3, 1).view(-1, 3 * width)
            rows.mul_(self._scale.view(3).repeat(width)).add_(self._shift.view(3).repeat(width))
        else:
            floats.mul_(self._scale).add_(self._shift)
        return floats if self._halved is None else floats.to(self._halved)

    def _copied(self, batch: Tensor) -> Tensor:
        """Return the batch on the GPU, copied by a stream of its own while others compute."""
        with torch.cuda.stream(self._copies):
            copy = batch.pin_memory().to(self.device, non_blocking=True)
        computing = torch.cuda.current_stream(self.device)
        computing.wait_stream(self._copies)
        copy.record_stream(computing)
        return copy

    @torch.inference_mode()
    def encode_texts(self, texts: list[str]) -> Tensor:
        """Return unit features float32 [B, d], on the CPU.

        Raises :class:`UserError` if the model has no text tower or a feature is not finite.
        """
        (unit,) = slices.forward(self._unit_of_tokens, self._tokens(texts).to(self.device))
        assert unit is not None
        self.require_finite(unit)
        return unit.cpu()

    @torch.inference_mode()
    def _unit_of_tokens(self, tokens: Tensor) -> tuple[Tensor]:
        """Return unit features float32 [B, d] of tokens int64 [B, length]."""
        with self._autocast():
            features = self._text_features(tokens)
        return (torch.nn.functional.normalize(features.float(), dim=1),)

    @property
    @abstractmethod
    def network(self) -> torch.nn.Module:
        """The part that takes normalized floats [B, 3, H, W]: its memory is that of a batch."""

    @abstractmethod
    def _image_features(self, batch: Tensor) -> Tensor:
        """Return features [B, d] of normalized floats [B, 3, H, W]."""

    def _tokens(self, texts: list[str]) -> Tensor:
        """Return int64 [B, length]. Raises :class:`UserError` if the model has no text tower."""
        raise UserError(
            f"embed.features: {self.name} has no text tower; set it to image, or embed.model to an "
            "open_clip model"
        )

    def _text_features(self, tokens: Tensor) -> Tensor:
        """Return features [B, d] of what `_tokens` returned."""
        raise AssertionError("a model with tokens has a text tower")

    def _autocast(self) -> torch.autocast:
        dtype = DTYPES[self.precision]
        enabled = dtype is not None and self._halved is None
        return torch.autocast(self.device.type, dtype=dtype, enabled=enabled)

    def require_finite(self, features: Tensor) -> None:
        """Raise :class:`UserError` if a feature is not finite."""
        if not torch.isfinite(features).all():
            raise UserError(
                f"embed.precision: {self.name} gives features that are not finite in "
                f"{self.precision}; set it to bf16 or fp32, or check the weights"
            )


def weights_sha256(state: dict[str, Tensor]) -> str:
    """Return the hex SHA-256 over names, dtypes, shapes and bytes, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
