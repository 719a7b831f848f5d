"""Export for open_clip: a config folder and the weights of the image tower.

open_clip saves whole models. The image tower's weights alone are written: a text tower of the run
(results/text) is not part of the export. open_clip loads them by `pretrained_image_path` into a
model whose text tower is at random weights.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import nn

import mlcd.utils.compat  # noqa: F401  (before open_clip)
from mlcd.data.preprocess import Preprocess
from mlcd.models.trainable import Encoder, open_clip_config, plain_state
from mlcd.models.vit import MLCDViT
from mlcd.stages.export.card import Usage
from mlcd.utils.errors import UserError
from mlcd.utils.files import atomic_path, read_json, write_json

WEIGHTS = "image_tower.safetensors"
CONFIG = "open_clip_config.json"
#: Text tower of CLIP ViT-B, in place of one that open_clip would fetch from a hub to build.
_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 512, "heads": 8, "layers": 12}
EXAMPLE = f"""
import open_clip
import torch
from PIL import Image, ImageOps

model, _, preprocess = open_clip.create_model_and_transforms(
    "local-dir:.", load_weights=False, pretrained_image_path="{WEIGHTS}"
)
model.eval()
image = ImageOps.exif_transpose(Image.open("image.jpg")).convert("RGBA")
image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
with torch.inference_mode():
    embedding = model.encode_image(preprocess(image).unsqueeze(0))
"""


def write(encoder: Encoder, folder: Path) -> Usage:
    """Write image_tower.safetensors and open_clip_config.json.

    Raises :class:`UserError` if the encoder is no tower of open_clip's.
    """
    if not encoder.model.startswith("open_clip:"):
        other = "transformers" if isinstance(encoder.trunk, MLCDViT) else "timm"
        raise UserError(
            f"export.formats: open_clip cannot load {encoder.model}; "
            f"set export.formats to [{other}]"
        )
    config = open_clip_config(encoder.model, encoder.embedding_dim, encoder.image_size)
    if "hf_model_name" in config["text_cfg"]:
        config["text_cfg"] = dict(_TEXT)
    preprocess = {
        "size": encoder.image_size,
        "mode": "RGB",
        "mean": list(encoder.mean),
        "std": list(encoder.std),
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file(plain_state(encoder.trunk), temporary)
    write_json(folder / CONFIG, {"model_cfg": config, "preprocess_cfg": preprocess})
    return Usage(
        "open_clip",
        EXAMPLE,
        "A text tower of the run is not part of this export: the one loaded here is at random "
        "weights. Use `encode_image` only.",
    )


def load(folder: Path) -> nn.Module:
    """Load the folder as a user of open_clip would; return its `encode_image` as a module."""
    import open_clip

    with torch.random.fork_rng(devices=[]):
        model = open_clip.create_model(
            f"local-dir:{folder}",
            load_weights=False,
            pretrained_image_path=str(folder / WEIGHTS),
        )
    return _ImageEncoder(model.eval())


class _ImageEncoder(nn.Module):
    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        # Of open_clip, which has no types.
        model = cast(Any, self.model)
        embeddings: torch.Tensor = model.encode_image(images)
        return embeddings


def pixels(folder: Path) -> Preprocess:
    """Return the transform that open_clip_config.json describes."""
    settings = read_json(folder / CONFIG)["preprocess_cfg"]
    side = settings["size"]
    return Preprocess((side, side), tuple(settings["mean"]), tuple(settings["std"]))
