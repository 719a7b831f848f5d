"""A model as the dense tasks see it: maps of whole images, pooled features of images and crops.

A whole image is squeezed to the encoder's square, so that no part of it is cut away and boxes and
masks fit by a factor per axis. A crop is resized as the encoder's own images are.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from PIL import Image

from mlcd.data.preprocess import Preprocess
from mlcd.models import slices
from mlcd.models.feature_maps import feature_map, trunk_of
from mlcd.stages.evaluate.feature_models import FeatureModel

#: The largest float16.
_MOST = 65504.0
#: Pixels per side that a crop has at least: a box of less is widened.
_LEAST = 2.0


class DenseModel:
    """Made of a :class:`FeatureModel` with a network, on `device`."""

    def __init__(self, model: FeatureModel, device: torch.device) -> None:
        assert model.network is not None, "pixels have no map"
        assert isinstance(model.prepare, Preprocess), "models with a network resize by one"
        self._model, self._device = model, device
        self._trunk = trunk_of(model.network)
        self._own: Preprocess = model.prepare
        self.whole: Callable[[Image.Image], np.ndarray] = replace(self._own, resize_mode="squash")
        dtype = next(weight.dtype for weight in model.network.parameters())
        self._dtype: torch.dtype = dtype
        mean = torch.tensor(self._own.mean, device=device).view(1, 3, 1, 1)
        std = torch.tensor(self._own.std, device=device).view(1, 3, 1, 1)
        self._mean, self._std = mean, std

    def crop(self, image: Image.Image, box: tuple[float, float, float, float]) -> np.ndarray:
        """Return the pixels of a box of an image, as the encoder sees an image."""
        left, top, right, bottom = box
        left, top = min(left, image.width - _LEAST), min(top, image.height - _LEAST)
        right, bottom = max(right, left + _LEAST), max(bottom, top + _LEAST)
        whole = (max(0, round(left)), max(0, round(top)), round(right), round(bottom))
        pixels: np.ndarray = self._own(image.crop(whole))
        return pixels

    def encoded(self, images: list[np.ndarray], size: int) -> tuple[np.ndarray, np.ndarray]:
        """Return maps float16 [n, h, w, C] and pooled features float32 [n, w] of whole images."""
        found = [self._maps(np.stack(images[at : at + size])) for at in range(0, len(images), size)]
        if not found:
            blank = np.zeros((1, *self._own.size, 3), np.uint8)
            return self._maps(blank)[:0], self.pooled([blank[0]], 1)[:0]
        return np.concatenate(found), self.pooled(images, size)

    def pooled(self, images: list[np.ndarray], size: int) -> np.ndarray:
        """Return float32 [n, w]: features before the projection, or the embedding without one."""
        found = []
        for start in range(0, len(images), size):
            embedding, trunk = self._model.encode(np.stack(images[start : start + size]))
            found.append((embedding if trunk is None else trunk).astype(np.float32))
        return np.concatenate(found)

    def _maps(self, batch: np.ndarray) -> np.ndarray:
        halves = self._model.halves and self._dtype == torch.float32

        @torch.inference_mode()
        def compute(images: torch.Tensor) -> tuple[torch.Tensor]:
            with torch.autocast(self._device.type, torch.bfloat16, enabled=halves):
                return (feature_map(self._trunk, images),)

        images = torch.from_numpy(batch).to(self._device).permute(0, 3, 1, 2).float()
        normalized = ((images / 255 - self._mean) / self._std).to(self._dtype)
        (maps,) = slices.forward(compute, normalized)
        assert maps is not None
        found = maps.float().permute(0, 2, 3, 1).contiguous().cpu()
        # Float16 holds what a norm leaves; a network without one may exceed it.
        halved: np.ndarray = found.clamp(-_MOST, _MOST).half().numpy()
        return halved
