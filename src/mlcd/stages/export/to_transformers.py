"""Export for transformers: a folder that `from_pretrained` loads, with its image processor.

`mlcd_vit_*` becomes MLCDVisionModel; a CLIP-like tower of open_clip's becomes
CLIPVisionModelWithProjection (CLIPVisionModel loads the same folder). MLCDVisionModel ends before
the projection, which lies in a file of its own where the encoder has one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mlcd.data.preprocess import Preprocess
from mlcd.models.trainable import Encoder, plain_state
from mlcd.models.vit import THETA, MLCDViT
from mlcd.stages.export.card import Usage
from mlcd.utils.errors import UserError
from mlcd.utils.files import atomic_path, read_json, write_json

WEIGHTS = "model.safetensors"
PROJECTION = "projection.safetensors"
PROCESSOR = "preprocessor_config.json"
_MLCD, _CLIP = "MLCDVisionModel", "CLIPVisionModelWithProjection"
_BICUBIC = 3
_EXAMPLE = """
import torch
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, {name}

processor = AutoImageProcessor.from_pretrained(".", backend="pil")
model = {name}.from_pretrained(".").eval()
image = ImageOps.exif_transpose(Image.open("image.jpg")).convert("RGBA")
image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
with torch.inference_mode():
    output = model(**processor(image, return_tensors="pt"))
embedding = output.{field}
"""
_PROJECT = f"""
from safetensors.torch import load_file

embedding = embedding @ load_file("{PROJECTION}")["weight"].T
"""
_REMARK = (
    "`backend='pil'` resizes as the evaluation did; without it pixels differ by a few levels. "
    "Either way, where the longer side is cut by an odd number of pixels, transformers may cut one "
    "pixel further to the left or the top than training and evaluation did. "
    "For patch tokens, as LLaVA takes them, call the model with `output_hidden_states=True` and "
    "take `output.hidden_states[-2][:, 1:]`."
)


def write(encoder: Encoder, folder: Path) -> Usage:
    """Write model.safetensors, config.json, preprocessor_config.json and perhaps the projection.

    Raises :class:`UserError` if transformers is not installed, or has no such architecture.
    """
    name, config, state, projection = _mapped(encoder)
    target = _model_class(name)(config)
    try:
        # Names as the model hub's files have them, which every release of transformers reads.
        inner = {key.removeprefix("vision_model."): value for key, value in state.items()}
        own = target.state_dict()
        prefixed = any(key.startswith("vision_model.") for key in own)
        target.load_state_dict(state if prefixed else inner)
    except RuntimeError as error:
        raise _misfit(encoder, " ".join(str(error).split())[:200]) from None
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file(dict(sorted(state.items())), temporary, metadata={"format": "pt"})
    if projection is None:
        (folder / PROJECTION).unlink(missing_ok=True)
    else:
        with atomic_path(folder / PROJECTION) as temporary:
            save_file({"weight": projection}, temporary)
    settings = {**config.to_dict(), "architectures": [name], "dtype": "float32"}
    write_json(folder / "config.json", dict(sorted(settings.items())))
    write_json(folder / PROCESSOR, _processor(encoder))
    field = "image_embeds" if name == _CLIP else "pooler_output"
    example = _EXAMPLE.format(name=name, field=field)
    return Usage("transformers", example + (_PROJECT if projection is not None else ""), _REMARK)


def load(folder: Path) -> nn.Module:
    """Load the folder as a user of transformers would; a module, images → embeddings."""
    from transformers.utils import logging

    (name,) = read_json(folder / "config.json")["architectures"]
    if name not in (_MLCD, _CLIP):
        raise UserError(f"{folder / 'config.json'}: {name} is no architecture that mlcd exports")
    logging.disable_progress_bar()
    with torch.random.fork_rng(devices=[]):
        model = _model_class(name).from_pretrained(
            folder, local_files_only=True, use_safetensors=True
        )
    return _Loaded(model.eval(), folder / PROJECTION)


def pixels(folder: Path) -> Preprocess:
    """Return the transform that preprocessor_config.json describes."""
    settings = read_json(folder / PROCESSOR)
    crop = settings["crop_size"]
    return Preprocess(
        (crop["height"], crop["width"]),
        tuple(settings["image_mean"]),
        tuple(settings["image_std"]),
    )


class _Loaded(nn.Module):
    """transformers' model, and the projection where it lies beside it."""

    weight: Tensor | None

    def __init__(self, model: nn.Module, projection: Path) -> None:
        super().__init__()
        self.model = model
        weight = load_file(projection)["weight"] if projection.exists() else None
        self.register_buffer("weight", weight)

    def forward(self, images: Tensor) -> Tensor:
        output = self.model(pixel_values=images)
        if "image_embeds" in output:
            embeds: Tensor = output.image_embeds
            return embeds
        pooled: Tensor = output.pooler_output
        return pooled if self.weight is None else pooled @ self.weight.T


def _mapped(encoder: Encoder) -> tuple[str, Any, dict[str, Tensor], Tensor | None]:
    """Return class name, config, weights by transformers' names, and the projection [d, width]."""
    from open_clip.transformer import VisionTransformer

    state = plain_state(encoder.trunk)
    if isinstance(encoder.trunk, MLCDViT):
        projection = None
        if isinstance(encoder.projection, nn.Linear):
            projection = plain_state(encoder.projection)["weight"]
        return _MLCD, _mlcd_config(encoder, encoder.trunk), _mlcd_state(state), projection
    if isinstance(encoder.trunk, VisionTransformer):
        return _CLIP, _clip_config(encoder, encoder.trunk), _clip_state(state, encoder), None
    raise _misfit(encoder, "neither mlcd_vit_* nor a CLIP vision transformer of open_clip")


def _mlcd_config(encoder: Encoder, trunk: MLCDViT) -> Any:
    _installed()
    from transformers import MLCDVisionConfig

    size = trunk.size
    return MLCDVisionConfig(
        hidden_size=size.width,
        intermediate_size=size.mlp,
        num_hidden_layers=size.depth,
        num_attention_heads=size.heads,
        image_size=encoder.image_size,
        patch_size=size.patch,
        hidden_act="gelu",
        layer_norm_eps=trunk.norm_out.eps,
        rope_parameters={"rope_type": "axial", "rope_theta": THETA},
    )


def _mlcd_state(state: dict[str, Tensor]) -> dict[str, Tensor]:
    parts = {"norm_1": "layer_norm1", "norm_2": "layer_norm2", "out": "self_attn.out_proj",
             "fc_1": "mlp.fc1", "fc_2": "mlp.fc2"}  # fmt: skip
    found = {
        "class_pos_emb": state.pop("class_angle")[None],
        **_stem(state, "patches", "norm_in", "norm_out"),
    }
    for key, value in state.items():
        _, layer, part, kind = key.split(".")
        place = f"encoder.layers.{layer}."
        if part == "qkv":
            found |= _thirds(place, kind, value)
        else:
            found[f"{place}{parts[part]}.{kind}"] = value
    return {f"vision_model.{key}": value for key, value in found.items()}


def _clip_config(encoder: Encoder, trunk: Any) -> Any:
    """Return transformers' config of open_clip's VisionTransformer `trunk`, which has no types."""
    _installed()
    from open_clip.transformer import QuickGELU
    from transformers import CLIPVisionConfig

    block = trunk.transformer.resblocks[0]
    activation = {nn.GELU: "gelu", QuickGELU: "quick_gelu"}.get(type(block.mlp.gelu))
    if activation is None or trunk.pool_type != "tok" or trunk.attn_pool is not None:
        raise _misfit(encoder, "its activation or pooling is not CLIP's")
    return CLIPVisionConfig(
        hidden_size=trunk.conv1.out_channels,
        intermediate_size=block.mlp.c_fc.out_features,
        num_hidden_layers=len(trunk.transformer.resblocks),
        num_attention_heads=block.attn.num_heads,
        image_size=encoder.image_size,
        patch_size=trunk.conv1.kernel_size[0],
        projection_dim=encoder.embedding_dim,
        hidden_act=activation,
        layer_norm_eps=trunk.ln_post.eps,
    )


def _clip_state(state: dict[str, Tensor], encoder: Encoder) -> dict[str, Tensor]:
    parts = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj",
             "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}  # fmt: skip
    projection = state.pop("proj").T.contiguous()
    try:
        found = {
            "embeddings.position_embedding.weight": state.pop("positional_embedding"),
            **_stem(state, "conv1", "ln_pre", "ln_post"),
        }
        for key, value in state.items():
            name = key.removeprefix("transformer.resblocks.")
            layer, part = name.split(".", 1)
            place = f"encoder.layers.{layer}."
            if part.startswith("attn.in_proj_"):
                found |= _thirds(place, part.removeprefix("attn.in_proj_"), value)
            else:
                part, kind = part.rsplit(".", 1)
                found[f"{place}{parts[part]}.{kind}"] = value
    except (KeyError, ValueError) as error:
        raise _misfit(encoder, f"CLIP's vision model differs at {error}") from None
    return {
        **{f"vision_model.{key}": value for key, value in found.items()},
        "visual_projection.weight": projection,
    }


def _stem(state: dict[str, Tensor], patches: str, first: str, last: str) -> dict[str, Tensor]:
    """Take what lies outside the blocks out of `state`, under transformers' names."""
    found = {
        "embeddings.class_embedding": state.pop("class_embedding"),
        "embeddings.patch_embedding.weight": state.pop(f"{patches}.weight"),
    }
    # "layrnorm" is transformers' own spelling.
    for ours, theirs in ((first, "pre_layrnorm"), (last, "post_layernorm")):
        for kind in ("weight", "bias"):
            found[f"{theirs}.{kind}"] = state.pop(f"{ours}.{kind}")
    return found


def _thirds(place: str, kind: str, value: Tensor) -> dict[str, Tensor]:
    """Divide the joint projection of queries, keys and values."""
    return {
        f"{place}self_attn.{letter}_proj.{kind}": part.contiguous().clone()
        for letter, part in zip("qkv", value.chunk(3), strict=True)
    }


def _processor(encoder: Encoder) -> dict[str, Any]:
    side = encoder.image_size
    return {
        "image_processor_type": "CLIPImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": side},
        "resample": _BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": side, "width": side},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(encoder.mean),
        "image_std": list(encoder.std),
    }


def _model_class(name: str) -> Any:
    _installed()
    import transformers

    return getattr(transformers, name)


def _installed() -> None:
    try:
        import transformers  # noqa: F401
    except ImportError:
        raise UserError(
            "export.formats: transformers is not installed; pip install 'mlcd[transformers]'"
        ) from None


def _misfit(encoder: Encoder, reason: str) -> UserError:
    other = "open_clip" if encoder.model.startswith("open_clip:") else "timm"
    return UserError(
        f"export.formats: transformers cannot load {encoder.model} ({reason}); "
        f"set export.formats to [{other}]"
    )
