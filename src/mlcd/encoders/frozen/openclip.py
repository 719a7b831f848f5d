"""Any open_clip model, by name and pretrained tag or local checkpoint.

Cherti et al., Reproducible scaling laws for contrastive language-image learning, arXiv 2212.07143;
the paper clusters the features of ViT-L-14 with the tag openai.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import mlcd.compat  # noqa: F401  # before open_clip, which imports torchvision
from mlcd.encoders.frozen.base import FrozenEncoder, weights_sha256
from mlcd.encoders.frozen.preprocess import Preprocess
from mlcd.errors import UserError
from mlcd.progress import LOGGER

#: Seed of the weights where none are asked for.
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

    def _image_features(self, batch: Tensor) -> Tensor:
        return self._model.encode_image(batch)

    def _text_features(self, texts: list[str]) -> Tensor:
        if self._tokenizer is None:
            import open_clip

            with _hub_errors(f"embed.model: {self.name}: its tokenizer"):
                self._tokenizer = open_clip.get_tokenizer(self._open_clip_name)
        return self._model.encode_text(self._tokenizer(texts).to(self.device))


def load(
    name: str,
    pretrained: str | os.PathLike[str] | None,
    image_size: int | None,
    device: torch.device,
    precision: str,
) -> FrozenEncoder:
    """Load an open_clip model; see :func:`mlcd.encoders.frozen.load`."""
    import open_clip

    tag = None if pretrained is None else os.fspath(pretrained)
    label = _check(name, tag)
    what = f"{name} with {tag}" if tag else name
    with _hub_errors(f"embed.pretrained: {what}"), torch.random.fork_rng(devices=[]):
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
    return OpenClip(model, name, label, device, precision)


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


@contextlib.contextmanager
def _hub_errors(what: str) -> Iterator[None]:
    """Turn the many kinds of failed downloads into one line that says what to do instead."""
    # open_clip logs the same failure through the root logger; one line is enough.
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise UserError(
            f"{what} could not be fetched ({reason}); on a machine with network run the same "
            "command once to fill the cache of the hub (HF_HOME) and copy that folder, or download "
            "the weights there and give the file's path as embed.pretrained"
        ) from None
    finally:
        logging.disable(disabled)


def _preprocess(config: dict[str, Any]) -> Preprocess:
    """Turn open_clip's preprocessing settings into ours; at inference `random` means bicubic."""
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size
    return Preprocess(
        size=(height, width),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        resize_mode=config["resize_mode"],
        interpolation="bilinear" if config["interpolation"] == "bilinear" else "bicubic",
        fill=config["fill_color"],
    )
