"""Whose features are judged: each a way from an image to a row of numbers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from mlcd.config import Embed, Evaluate, parse_section
from mlcd.data.preprocess import Preprocess
from mlcd.models import frozen, region_layer, trainable, unprojected
from mlcd.models.region_layer import RegionLayer
from mlcd.utils.errors import UserError


@dataclass
class FeatureModel:
    """From images to features, in two halves.

    `prepare` makes uint8 pixels [h, w, 3] of an RGB image, in decoding threads; `encode` makes
    float32 embeddings [B, d] of a uint8 batch [B, h, w, 3], and features [B, w] before the
    projection, for the probe; None where there is none. `identity` says what the features depend on
    besides the images, `seed` which seed they come from, `encoder_sha256` the trained weights.
    `network`, None where nothing computes on a device, sees floats of `pixels`; `halves`: under
    autocast. `regions`: the region layer that was trained with the encoder, on the CPU.
    """

    prepare: Callable[[Image.Image], np.ndarray]
    encode: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]
    identity: dict[str, Any]
    seed: int
    encoder_sha256: str | None = None
    network: nn.Module | None = None
    pixels: tuple[int, int] = (0, 0)
    halves: bool = False
    regions: RegionLayer | None = None


def load(
    name: str, section: Evaluate, encoder: str | None, embed_config: str, device: torch.device
) -> FeatureModel:
    """Load one of pixels, random, trained, frozen.

    `encoder` is the folder of the stage train (random: its description; trained: its weights),
    `embed_config` the section embed for frozen, as a config file or JSON. Raises
    :class:`UserError` if the name is unknown or what the model needs is missing.
    """
    if name == "pixels":
        return _pixels(section)
    if name == "frozen":
        return _frozen(section, embed_config, device)
    if name not in ("random", "trained"):
        raise UserError(f"--model: {name!r} is none of pixels, random, trained, frozen")
    if not encoder:
        raise UserError(f"--encoder: needed for the model {name}; give the folder of stage train")
    return (_random if name == "random" else _trained)(section, encoder, device)


def _pixels(section: Evaluate) -> FeatureModel:
    """The image itself, small; the mean of its values is taken away, so that cosines compare
    structure and not brightness.
    """
    side = section.pixel_side
    pixels = Preprocess((side, side), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), resize_mode="squash")

    def encode(batch: np.ndarray) -> tuple[np.ndarray, None]:
        rows = batch.reshape(len(batch), -1).astype(np.float32) / 255
        return rows - rows.mean(1, keepdims=True), None

    return FeatureModel(pixels, encode, {"model": "pixels", "side": side}, section.seed)


def _random(section: Evaluate, folder: str, device: torch.device) -> FeatureModel:
    """The architecture of the trained encoder at weights of `evaluate.seed`."""
    about = trainable.read_description(folder)
    encoder = trainable.build(
        about["model"], about["embedding_dim"], about["image_size"], seed=section.seed
    )
    keys = ("model", "embedding_dim", "image_size", "mean", "std")
    identity = {"model": "random", "encoder": {key: about[key] for key in keys}}
    return _of_encoder(encoder, identity, section.seed, device, _in_halves(about, device))


def _trained(section: Evaluate, folder: str, device: torch.device) -> FeatureModel:
    about = trainable.read_description(folder)
    seed = about.get("section", {}).get("seed", section.seed)
    identity = {"model": "trained", "sha256": about["sha256"]}
    model = _of_encoder(trainable.load(folder), identity, seed, device, _in_halves(about, device))
    return replace(model, encoder_sha256=about["sha256"], regions=region_layer.load(folder))


def _in_halves(about: dict[str, Any], device: torch.device) -> bool:
    """True if the encoder was trained in bfloat16 and is on a GPU, which has it in its cores."""
    return device.type == "cuda" and about.get("section", {}).get("precision") == "bf16"


def _of_encoder(
    encoder: trainable.Encoder,
    identity: dict[str, Any],
    seed: int,
    device: torch.device,
    halves: bool,
) -> FeatureModel:
    encoder = encoder.eval().to(device)
    side = encoder.image_size
    pixels = Preprocess((side, side), encoder.mean, encoder.std)
    mean = 255 * torch.tensor(encoder.mean, device=device).view(1, 3, 1, 1)
    std = 255 * torch.tensor(encoder.std, device=device).view(1, 3, 1, 1)

    @torch.inference_mode()
    def encode(batch: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        images = torch.from_numpy(batch).to(device).permute(0, 3, 1, 2).float()
        with torch.autocast(device.type, torch.bfloat16, enabled=halves):
            embedding, pooled = unprojected.of_encoder(encoder, (images - mean) / std)
        trunk = None if pooled is None else pooled.float().cpu().numpy()
        return embedding.float().cpu().numpy(), trunk

    if halves:
        identity = {**identity, "precision": "bf16"}
    return FeatureModel(
        pixels, encode, identity, seed, network=encoder, pixels=(side, side), halves=halves
    )


def _frozen(section: Evaluate, embed_config: str, device: torch.device) -> FeatureModel:
    embed = parse_section("embed", embed_config, {})
    assert isinstance(embed, Embed)
    encoder = frozen.load(
        embed.model, embed.pretrained, embed.image_size, str(device), embed.precision
    )

    def encode(batch: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        pixels = torch.from_numpy(batch).permute(0, 3, 1, 2)
        embedding, trunk = unprojected.of_frozen(encoder, pixels)
        return embedding.numpy(), trunk.numpy()

    identity = {"model": "frozen", "encoder": encoder.identity, "precision": embed.precision}
    return FeatureModel(
        encoder.pixels, encode, identity, section.seed, network=encoder.network,
        pixels=encoder.pixels.size, halves=embed.precision != "fp32",
    )  # fmt: skip
