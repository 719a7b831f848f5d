"""Export for timm: a folder that `timm.create_model("local-dir:FOLDER", pretrained=True)` loads.

The projection becomes timm's classifier, whose bias is zero: the model's output is the embedding.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import save_file
from torch import nn

from mlcd.data.preprocess import Preprocess
from mlcd.models.trainable import Encoder, plain_state
from mlcd.models.vit import MLCDViT
from mlcd.stages.export.card import Usage
from mlcd.utils.errors import UserError
from mlcd.utils.files import atomic_path, read_json, write_json

EXAMPLE = """
import timm
import torch
from PIL import Image, ImageOps

model = timm.create_model("local-dir:.", pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
image = ImageOps.exif_transpose(Image.open("image.jpg")).convert("RGBA")
image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
with torch.inference_mode():
    embedding = model(transform(image).unsqueeze(0))
"""


def write(encoder: Encoder, folder: Path) -> Usage:
    """Write model.safetensors and config.json.

    Raises :class:`UserError` if the encoder has no timm name, or if its classifier is no single
    linear layer on the pooled features.
    """
    import timm

    if isinstance(encoder.trunk, MLCDViT) or encoder.model.startswith("open_clip:"):
        other = "transformers" if isinstance(encoder.trunk, MLCDViT) else "open_clip"
        raise UserError(
            f"export.formats: timm cannot load {encoder.model}; set export.formats to [{other}]"
        )
    architecture = encoder.model.split(".")[0]
    # Attributes of a module are tensors or modules to the type checker.
    pretrained = dict(cast(dict[str, Any], encoder.trunk.pretrained_cfg))
    projection = cast(nn.Linear, encoder.projection)
    fixed = bool(pretrained.get("fixed_input_size"))
    arguments: dict[str, Any] = {"img_size": encoder.image_size} if fixed else {}
    with torch.random.fork_rng(devices=[]):
        target = timm.create_model(architecture, num_classes=encoder.embedding_dim, **arguments)
    state = plain_state(encoder.trunk)
    names = pretrained.get("classifier") or ()
    heads = [names] if isinstance(names, str) else list(names)
    for name in heads:
        if not isinstance(_module(target, name), nn.Linear):
            raise _misfit(encoder, f"its classifier {name} is no linear layer")
        state[f"{name}.weight"] = projection.weight.detach().float().cpu().clone()
        state[f"{name}.bias"] = torch.zeros(encoder.embedding_dim)
    try:
        target.load_state_dict(state)
    except RuntimeError as error:
        raise _misfit(encoder, " ".join(str(error).split())[:200]) from None
    with atomic_path(folder / "model.safetensors") as temporary:
        save_file(dict(sorted(state.items())), temporary)
    config: dict[str, Any] = {
        "architecture": architecture,
        "num_classes": encoder.embedding_dim,
        "num_features": target.num_features,
        "pretrained_cfg": {
            "input_size": [3, encoder.image_size, encoder.image_size],
            "fixed_input_size": fixed,
            "interpolation": "bicubic",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(encoder.mean),
            "std": list(encoder.std),
            "num_classes": encoder.embedding_dim,
            "pool_size": None,
            "first_conv": pretrained.get("first_conv"),
            "classifier": names,
            "custom_load": False,
        },
    }
    if arguments:
        config["model_args"] = arguments
    write_json(folder / "config.json", config)
    return Usage(
        "timm",
        EXAMPLE,
        "`model.forward_features` and `forward_head(…, pre_logits=True)` give the features before "
        "the projection; the classifier layer is the projection, its bias is zero.",
    )


def load(folder: Path) -> nn.Module:
    """Load the folder as a user of timm would."""
    import timm

    with torch.random.fork_rng(devices=[]):
        return timm.create_model(f"local-dir:{folder}", pretrained=True).eval()


def pixels(folder: Path) -> Preprocess:
    """Return the transform that config.json describes."""
    settings = read_json(folder / "config.json")["pretrained_cfg"]
    return Preprocess(
        tuple(settings["input_size"][1:]), tuple(settings["mean"]), tuple(settings["std"])
    )


def _module(model: nn.Module, name: str) -> nn.Module | None:
    return dict(model.named_modules()).get(name)


def _misfit(encoder: Encoder, reason: str) -> UserError:
    return UserError(
        f"export.formats: timm cannot hold {encoder.model} as one model ({reason}); "
        "use encoder.safetensors of stage train with mlcd.models.trainable.load"
    )
