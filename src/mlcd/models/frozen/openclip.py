"""Any open_clip model, by name and pretrained tag or local checkpoint.

Cherti et al., Reproducible scaling laws for contrastive language-image learning, arXiv 2212.07143;
the paper clusters the features of ViT-L-14 with the tag openai.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mlcd.utils.compat  # noqa: F401  # before open_clip, which imports torchvision
from mlcd.data.preprocess import Preprocess, channels
from mlcd.models import hub
from mlcd.models.frozen.base import DTYPES, FrozenEncoder, weights_sha256
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER

#: Seed of the weights where none are asked for.
_INSTEAD = "download the weights there and give the file's path as embed.pretrained"
_SEED = 0
#: What the names of open_clip's models with the activation x · sigmoid(1.702 x) end in.
_QUICKGELU = "-quickgelu"
_SCHEMES = ("local-dir:", "hf-hub:")


class OpenClip(FrozenEncoder):
    """Both towers of an open_clip model; made by :func:`load`."""

    def __init__(
        self, model: Any, name: str, pretrained: str | None, device: torch.device, precision: str
    ) -> None:
        digest = weights_sha256(model.state_dict())
        self._model = model.eval().requires_grad_(False).to(device)
        self._open_clip_name = name
        self._tokenizer: Any = None
        pixels = _preprocess(model.visual.preprocess_cfg)
        with torch.inference_mode():
            probe = torch.zeros(1, 3, *pixels.size, device=device)
            dim = int(model.encode_image(probe).shape[1])
        super().__init__(
            # Never a path of this machine: the weights' hash tells folders apart.
            name=f"local-dir:{Path(name).name}" if name.startswith("local-dir:") else name,
            pretrained=pretrained,
            weights_sha256=digest,
            pixels=pixels,
            dim=dim,
            device=device,
            precision=precision,
        )
        # No weight tells which activation they were trained with, and features differ much.
        self.identity["activation"] = _activation(model)

    @property
    def network(self) -> torch.nn.Module:
        network: torch.nn.Module = self._model.visual
        return network

    def halve(self) -> None:
        """Convert the weights to the precision of the forward pass, which is not fp32.

        Autocast would convert them at every batch, and norms and sums to float32 and back.
        """
        self._halved = DTYPES[self.precision]
        self._model.to(self._halved)

    def _image_features(self, batch: Tensor) -> Tensor:
        features: Tensor = self._model.encode_image(batch)
        return features

    def _tokens(self, texts: list[str]) -> Tensor:
        if self._tokenizer is None:
            import open_clip

            with hub.one_line(f"embed.model: {self.name}: its tokenizer", _INSTEAD):
                self._tokenizer = open_clip.get_tokenizer(self._open_clip_name)
        tokens: Tensor = self._tokenizer(texts)
        return tokens

    def _text_features(self, tokens: Tensor) -> Tensor:
        features: Tensor = self._model.encode_text(tokens)
        return features


def load(
    name: str,
    pretrained: str | os.PathLike[str] | None,
    image_size: int | None,
    device: torch.device,
    precision: str,
) -> FrozenEncoder:
    """Load an open_clip model; see :func:`mlcd.models.frozen.load`."""
    import open_clip

    tag = None if pretrained is None else os.fspath(pretrained)
    label = _check(name, tag)
    what = f"{name} with {tag}" if tag else name
    with hub.one_line(f"embed.pretrained: {what}", _INSTEAD), torch.random.fork_rng(devices=[]):
        torch.manual_seed(_SEED)
        try:
            model = open_clip.create_model(
                name,
                pretrained=tag,
                # open_clip only warns where the tag's weights need another activation than `name`.
                force_quick_gelu=_is_tag(name, tag) and _trained_with_quick_gelu(name, tag),
                force_image_size=image_size,
                pretrained_image=False,
                pretrained_text=False,
                weights_only=True,
            )
        except (RuntimeError, ValueError, KeyError, AssertionError) as error:
            if _is_tag(name, tag):  # what failed is the download
                raise
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"embed.model: {what} at image_size {image_size or 'null'} cannot be made "
                f"({reason}); check that the checkpoint and the size belong to the model"
            ) from None
    if tag is None and not name.startswith(_SCHEMES):
        LOGGER.warning("embed.pretrained is null: %s has random weights, for tests only", name)
    encoder = OpenClip(model, name, label, device, precision)
    if device.type == "cuda" and precision != "fp32":
        encoder.halve()
    return encoder


def _check(name: str, tag: str | None) -> str | None:
    """Refuse unknown names and tags; return the tag, or a checkpoint's file name."""
    import open_clip

    if not name.startswith(_SCHEMES) and open_clip.get_model_config(name.replace("/", "-")) is None:
        known = ["efficientnet_lite0", *open_clip.list_models()]
        raise UserError(f"embed.model: open_clip knows no model {name!r}; {_nearest(name, known)}")
    if tag is None or name.startswith(_SCHEMES):
        return None
    tags = open_clip.list_pretrained_tags_by_model(name.replace("/", "-"))
    if _is_tag(name, tag):
        if name.endswith(_QUICKGELU) and not _trained_with_quick_gelu(name, tag):
            raise UserError(
                f"embed.model: the weights {tag!r} were trained with GELU, not the QuickGELU of "
                f"{name}; set it to {name.removesuffix(_QUICKGELU)}"
            )
        return tag
    if Path(tag).is_file():
        return Path(tag).name
    raise UserError(
        f"embed.pretrained: {name} has no pretrained tag {tag!r}, and no file is there; "
        + (_nearest(tag, tags) if tags else "give the path of a checkpoint, or null")
    )


def _is_tag(name: str, tag: str | None) -> bool:
    import open_clip

    return tag is not None and open_clip.is_pretrained_cfg(name.replace("/", "-"), tag)


def _trained_with_quick_gelu(name: str, tag: str | None) -> bool:
    import open_clip

    return bool(open_clip.get_pretrained_cfg(name.replace("/", "-"), tag).get("quick_gelu"))


def _activation(model: torch.nn.Module) -> str:
    """Return the activation between a block's linear layers, `quick_gelu` or `gelu`."""
    from open_clip.transformer import QuickGELU

    return "quick_gelu" if any(isinstance(m, QuickGELU) for m in model.modules()) else "gelu"


def _nearest(word: str, known: list[str]) -> str:
    lowered = {candidate.lower(): candidate for candidate in reversed(known)}
    close = difflib.get_close_matches(word.lower(), lowered, n=1, cutoff=0.0)
    return f"did you mean {lowered[close[0]]}?"


def _preprocess(config: dict[str, Any]) -> Preprocess:
    """Turn open_clip's preprocessing settings into ours; at inference `random` means bicubic."""
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    return Preprocess(
        size=(height, width),
        mean=channels(config["mean"]),
        std=channels(config["std"]),
        resize_mode=config["resize_mode"],
        interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
        fill=config["fill_color"],
    )
