"""Frozen, off-the-shelf encoders behind one small interface.

    encoder = load("ViT-L-14", "openai", device="cuda", precision="bf16")
    batch = torch.stack([encoder.preprocess(image) for image in images])
    features = encoder.encode_images(batch)          # float32 [B, d], unit rows
    texts = encoder.encode_texts(["a photo of a cat"])

`efficientnet_lite0` comes from packages and stands in for CLIP on a laptop; any other name is an
open_clip model. torch is imported by :func:`load`, not here, so that decoding worker processes can
import :mod:`mlcd.data.preprocess` in a moment.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from mlcd.config.encoders import PACKAGED

if TYPE_CHECKING:
    from mlcd.models.frozen.base import FrozenEncoder


def load(
    name: str,
    pretrained: str | os.PathLike[str] | None = None,
    image_size: int | None = None,
    device: str = "cpu",
    precision: str = "fp32",
) -> FrozenEncoder:
    """Load the encoder `name`, ready to embed.

    `pretrained` is open_clip's tag or the path of a local checkpoint; None means random weights
    from a fixed seed (the packaged encoder always has its own weights). `image_size` in pixels,
    None for the model's own. `device` is torch's name, or `auto`: cuda if there is one, else cpu.
    `precision`: fp32, bf16 or fp16, of the forward pass.

    Raises :class:`mlcd.utils.errors.UserError` for an unknown model, tag or device, weights that
    are not there or do not fit, and an image size that the model cannot take.
    """
    from mlcd.utils.device import pick_device

    chosen = pick_device(device)
    if name == PACKAGED:
        from mlcd.models.frozen import efficientnet

        return efficientnet.load(pretrained, image_size, chosen, precision)
    from mlcd.models.frozen import openclip

    return openclip.load(name, pretrained, image_size, chosen, precision)


def load_trained(
    folder: str | os.PathLike[str], device: str = "cpu", precision: str = "fp32"
) -> FrozenEncoder:
    """Load the encoder that stage train wrote into `folder`, frozen.

    Raises :class:`mlcd.utils.errors.UserError` if it is missing, damaged, or the device cannot be
    used.
    """
    from mlcd.models.frozen import trained
    from mlcd.utils.device import pick_device

    return trained.load(folder, pick_device(device), precision)
