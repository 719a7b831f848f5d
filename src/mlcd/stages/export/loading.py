"""Open a trained encoder or one of its exports by folder, for images in and embeddings out."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from mlcd.data.preprocess import Preprocess
from mlcd.models import slices, trainable
from mlcd.stages.export import CHECK, module_of
from mlcd.utils.errors import UserError
from mlcd.utils.files import sha256_file
from mlcd.utils.records import read_record


@dataclass(frozen=True)
class ImageModel:
    """An encoder with its transform.

    `pixels` makes uint8 [h, w, 3] of an RGB image; `identity` says whose weights and transform
    they are, equal for a trained encoder and all its exports.
    """

    pixels: Preprocess
    identity: dict[str, Any]
    network: nn.Module
    device: torch.device

    @torch.inference_mode()
    def encode(self, batch: np.ndarray) -> np.ndarray:
        """Return unit features float32 [B, d] of uint8 pixels [B, h, w, 3].

        Rows that are zero or not finite come as they are: :func:`mlcd.data.embeddings.unusable`.
        """
        mean = 255 * torch.tensor(self.pixels.mean, device=self.device).view(1, 3, 1, 1)
        std = 255 * torch.tensor(self.pixels.std, device=self.device).view(1, 3, 1, 1)
        images = torch.from_numpy(batch).to(self.device).permute(0, 3, 1, 2).float()
        (unit,) = slices.forward(self._unit, (images - mean) / std)
        assert unit is not None
        return np.asarray(unit.cpu())

    @torch.inference_mode()
    def _unit(self, images: torch.Tensor) -> tuple[torch.Tensor]:
        return (nn.functional.normalize(self.network(images).float(), dim=1),)


def open_model(folder: str | os.PathLike[str], device: torch.device) -> ImageModel:
    """Open results/train, results/export/FORMAT, or results/export if it holds one format.

    Raises :class:`UserError` if it is none of these, or if a file changed since the export.
    """
    path = Path(folder)
    if (path / trainable.DESCRIPTION).exists():
        encoder = trainable.load(path)
        side = encoder.image_size
        pixels = Preprocess((side, side), encoder.mean, encoder.std)
        about = trainable.read_description(path)
        return _model(encoder, pixels, about["model"], about["sha256"], encoder, device)
    if not (path / CHECK).exists():
        formats = sorted(check.parent for check in path.glob(f"*/{CHECK}"))
        if len(formats) != 1:
            hint = f"choose one of {', '.join(map(str, formats))}" if formats else "run export"
            raise UserError(f"--model: {path} holds no encoder of train or export; {hint}")
        path = formats[0]
    check = read_record(path / CHECK, "export")
    _whole(path, check)
    module = module_of(check["format"])
    try:
        network, pixels = module.load(path), module.pixels(path)
    except ValueError as error:
        raise UserError(f"{path}: {error}; export again") from None
    return _model(network, pixels, check["model"], check["encoder_sha256"], network, device)


def _model(
    network: nn.Module,
    pixels: Preprocess,
    name: str,
    sha256: str,
    encoder: nn.Module,
    device: torch.device,
) -> ImageModel:
    height, width = pixels.size
    with torch.inference_mode():
        dim = encoder(torch.zeros(1, 3, height, width)).shape[1]
    identity = {
        "name": name,
        "weights_sha256": sha256,
        "preprocessing": json.loads(pixels.to_json()),
        "dim": dim,
    }
    return ImageModel(pixels, identity, network.eval().to(device), device)


def _whole(folder: Path, check: Any) -> None:
    """Refuse a folder whose weights or config are not those that the export checked."""
    try:
        files = dict(check["files"])
        module_of(check["format"])
        missing = {"model", "encoder_sha256"} - set(check)
    except (KeyError, TypeError, ValueError):
        missing = {"files"}
    if missing:
        raise UserError(f"{folder / CHECK}: {sorted(missing)[0]} is missing or wrong; export again")
    found = {path.name: path for path in folder.iterdir() if path.name in files}
    for name, expected in files.items():
        if name not in found or sha256_file(found[name]) != expected:
            raise UserError(f"{folder}: {name} is not the file that was exported; export again")
