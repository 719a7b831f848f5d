"""The encoder that is trained, by name: timm's, the vision tower of open_clip's, or mlcd_vit_*.

Built at random weights from a seed; nothing is downloaded. Stored as float32 safetensors beside a
JSON file that says how to build it again.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

import mlcd.utils.compat  # noqa: F401  (before timm and open_clip)
from mlcd.config.encoders import OPEN_CLIP, PREFIX, SIZES, unknown
from mlcd.data.preprocess import Channels, channels, channels_problem
from mlcd.models import vit
from mlcd.utils.errors import UserError
from mlcd.utils.files import atomic_path, sha256_file
from mlcd.utils.records import read_record, write_record

WEIGHTS = "encoder.safetensors"
DESCRIPTION = "encoder.json"
#: Normalization that open_clip applies to a model without pretrained weights (OpenAI's CLIP).
_CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
_CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class Encoder(nn.Module):
    """Images float32 [B, 3, H, W], normalized by `mean` and `std`, to embeddings [B, d].

    The output is not L2-normalized. `trunk` gives pooled features; `projection` maps them to d
    (linear without bias; the identity where the trunk ends in a projection of its own, as
    open_clip's towers do, and for mlcd_vit_* where d is its width). Attributes: `model`,
    `embedding_dim`, `image_size`, `mean`, `std`; `frozen`: modules that stay in evaluation mode.
    """

    def __init__(
        self,
        trunk: nn.Module,
        projection: nn.Module,
        *,
        model: str,
        embedding_dim: int,
        image_size: int,
        mean: Channels,
        std: Channels,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.projection = projection
        self.model = model
        self.embedding_dim = embedding_dim
        self.image_size = image_size
        self.mean = mean
        self.std = std
        # A tuple, so that they are not registered under a second name.
        self.frozen: tuple[nn.Module, ...] = ()

    def train(self, mode: bool = True) -> Encoder:
        """Set training mode, but for what is frozen."""
        super().train(mode)
        for module in self.frozen:
            module.eval()
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        embeddings: torch.Tensor = self.projection(self.trunk(images))
        return embeddings


def build(
    model: str, embedding_dim: int, image_size: int, drop_path: float = 0.0, seed: int = 0
) -> Encoder:
    """Build `model` (timm's name, open_clip:NAME, mlcd_vit_*) at random weights from `seed`.

    Equal arguments give equal weights; the global random state is left as it was. Raises
    :class:`UserError` if the name is unknown, if the model cannot see images of `image_size`
    pixels, or if `drop_path` is set for a model that has no stochastic depth.
    """
    if model.startswith(OPEN_CLIP):
        make = _open_clip_tower
    else:
        make = _mlcd_vit if model.startswith(PREFIX) else _timm_trunk
    with torch.random.fork_rng(devices=[]):
        # Not torch.manual_seed: it would also reseed every CUDA device, which is not restored.
        torch.default_generator.manual_seed(seed)
        try:
            trunk, projection, mean, std = make(model, embedding_dim, image_size, drop_path)
        except UserError:
            raise
        except Exception as error:  # each architecture refuses sizes in its own way
            raise _not_buildable(model, image_size, error) from None
    encoder = Encoder(
        trunk,
        projection,
        model=model,
        embedding_dim=embedding_dim,
        image_size=image_size,
        mean=mean,
        std=std,
    )
    _check_forward(encoder)
    return encoder


def save(encoder: Encoder, folder: str | os.PathLike[str], extra: dict[str, Any]) -> None:
    """Write encoder.safetensors (float32), then encoder.json with `extra` merged in.

    Each file is written atomically, and equal weights give equal bytes. A kill between the two
    leaves a description that :func:`load` refuses by its SHA-256.
    """
    weights = Path(folder) / WEIGHTS
    with atomic_path(weights) as temporary:
        save_file(plain_state(encoder), temporary)
    description = {
        "model": encoder.model,
        "embedding_dim": encoder.embedding_dim,
        "image_size": encoder.image_size,
        "mean": list(encoder.mean),
        "std": list(encoder.std),
        "sha256": sha256_file(weights),
    }
    write_record(Path(folder) / DESCRIPTION, {**description, **extra})


def load(folder: str | os.PathLike[str]) -> Encoder:
    """Load what :func:`save` wrote, in evaluation mode, on the CPU.

    Raises :class:`UserError` if a file is missing, damaged, or of another run than its neighbor.
    """
    description = read_description(folder)
    weights = Path(folder) / WEIGHTS
    if not weights.exists():
        raise UserError(f"{weights}: no such file; run the stage train first")
    if sha256_file(weights) != description["sha256"]:
        raise UserError(f"{weights}: not the weights that {DESCRIPTION} describes; rerun train")
    encoder = build(description["model"], description["embedding_dim"], description["image_size"])
    try:
        encoder.load_state_dict(load_file(weights))
    except (SafetensorError, RuntimeError) as error:
        raise UserError(
            f"{weights}: does not fit {description['model']} ({_first_line(error)}); rerun train"
        ) from None
    encoder.mean, encoder.std = channels(description["mean"]), channels(description["std"])
    return encoder.eval()


def read_description(folder: str | os.PathLike[str]) -> dict[str, Any]:
    """Return encoder.json as a dict. Raises :class:`UserError` if it is missing or incomplete."""
    path = Path(folder) / DESCRIPTION
    description = read_record(path, "train")
    for key in ("model", "embedding_dim", "image_size", "mean", "std", "sha256"):
        if key not in description:
            raise UserError(f"{path}: {key} is missing; rerun train")
    for key in ("mean", "std"):
        if problem := channels_problem(description[key], positive=key == "std"):
            raise UserError(f"{path}: {key} is {description[key]!r}, {problem}; rerun train")
    return description


def plain_state(module: nn.Module) -> dict[str, torch.Tensor]:
    """Return weights and buffers by sorted name, floats as float32, on the CPU, sharing nothing."""
    state = module.state_dict()
    return {
        name: value.detach()
        .to("cpu", torch.float32 if value.is_floating_point() else value.dtype)
        .clone(memory_format=torch.contiguous_format)
        for name, value in sorted(state.items())
    }


def _timm_trunk(
    model: str, embedding_dim: int, image_size: int, drop_path: float
) -> tuple[nn.Module, nn.Module, Channels, Channels]:
    import timm

    if not timm.is_model(model):
        raise UserError(_unknown(model, timm.list_models()))
    config = timm.get_pretrained_cfg(model)
    options: dict[str, Any] = {"num_classes": 0, "pretrained": False}
    if config is not None and config.fixed_input_size:
        options["img_size"] = image_size
    if drop_path:
        options["drop_path_rate"] = drop_path
    try:
        trunk = timm.create_model(model, **options)
    except TypeError as error:
        if "drop_path_rate" in str(error):
            raise UserError(
                f"train.drop_path: {model} has no stochastic depth; set it to 0"
            ) from None
        raise
    # Attributes of a module are tensors or modules to the type checker; timm's are not.
    width = cast(int, getattr(trunk, "head_hidden_size", None) or trunk.num_features)
    settings = cast(dict[str, Any], trunk.pretrained_cfg)
    return (
        trunk,
        _projection(width, embedding_dim),
        channels(settings["mean"]),
        channels(settings["std"]),
    )


def _mlcd_vit(
    model: str, embedding_dim: int, image_size: int, drop_path: float
) -> tuple[nn.Module, nn.Module, Channels, Channels]:
    if model not in SIZES:
        raise UserError(_unknown(model, SIZES))
    trunk = vit.build(model, image_size, drop_path)
    width = trunk.size.width
    projection = nn.Identity() if embedding_dim == width else _projection(width, embedding_dim)
    return trunk, projection, _CLIP_MEAN, _CLIP_STD


def _projection(width: int, embedding_dim: int) -> nn.Linear:
    projection = nn.Linear(width, embedding_dim, bias=False)
    nn.init.normal_(projection.weight, std=width**-0.5)  # as CLIP draws its projection
    return projection


def _open_clip_tower(
    model: str, embedding_dim: int, image_size: int, drop_path: float
) -> tuple[nn.Module, nn.Module, Channels, Channels]:
    from open_clip.model import _build_vision_tower

    config = open_clip_config(model, embedding_dim, image_size)
    vision = config["vision_cfg"]
    if drop_path:
        if "timm_model_name" not in vision:
            raise UserError(f"train.drop_path: {model} has no stochastic depth; set it to 0")
        vision = {**vision, "timm_drop_path": drop_path}
    tower = _build_vision_tower(embedding_dim, vision, config.get("quick_gelu", False))
    return tower, nn.Identity(), _CLIP_MEAN, _CLIP_STD


def open_clip_config(model: str, embedding_dim: int, image_size: int) -> dict[str, Any]:
    """Return open_clip's config of open_clip:NAME at another embedding dimension and image size.

    open_clip's towers end in a projection; here it goes to `embedding_dim`. Raises
    :class:`UserError` if the name is unknown or the tower takes one image size only.
    """
    import open_clip
    import timm

    name = model.removeprefix(OPEN_CLIP)
    known = open_clip.list_models()
    if name not in known:
        raise UserError(_unknown(model, [OPEN_CLIP + other for other in known]))
    config: dict[str, Any] = copy.deepcopy(open_clip.get_model_config(name))
    vision = config["vision_cfg"]
    if trunk := vision.get("timm_model_name"):
        pretrained = timm.get_pretrained_cfg(trunk)
        if pretrained is not None and pretrained.fixed_input_size:
            side = pretrained.input_size[-1]
            if image_size != side:
                raise UserError(
                    f"train.image_size: {model} takes {side} pixels only; "
                    f"set that, or train.model: {trunk}, which takes others"
                )
        if vision.get("timm_proj") == "none" and embedding_dim != config["embed_dim"]:
            vision.update(timm_proj="linear", timm_proj_bias=False)
        vision["timm_model_pretrained"] = False
    config["embed_dim"] = embedding_dim
    vision["image_size"] = image_size
    return config


def _check_forward(encoder: Encoder) -> None:
    """Run shapes alone through the encoder, so that a wrong size is found before any work."""
    weights = {
        name: value.to("meta")
        for name, value in [*encoder.named_parameters(), *encoder.named_buffers()]
    }
    images = torch.empty(2, 3, encoder.image_size, encoder.image_size, device="meta")
    training = encoder.training
    try:
        with torch.no_grad():
            output = torch.func.functional_call(encoder.eval(), weights, (images,))
    except NotImplementedError:  # an operator without a shape rule: found at the first real step
        return
    except Exception as error:
        raise _not_buildable(encoder.model, encoder.image_size, error) from None
    finally:
        encoder.train(training)
    shape = tuple(output.shape) if isinstance(output, torch.Tensor) else None
    if shape != (2, encoder.embedding_dim):
        raise UserError(
            f"train.model: {encoder.model} does not give one vector of train.embedding_dim = "
            f"{encoder.embedding_dim} per image (shape {shape}); choose another model"
        )


def _unknown(model: str, known: Iterable[str]) -> str:
    return f"train.model: {unknown(model, known)}"


def _not_buildable(model: str, image_size: int, error: Exception) -> UserError:
    return UserError(
        f"train.model: {model} cannot be built for images of {image_size} pixels "
        f"({_first_line(error)}); change train.image_size or train.model"
    )


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__
