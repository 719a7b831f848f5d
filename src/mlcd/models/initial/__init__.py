"""First weights of the encoder: found (:mod:`.sources`), renamed (:mod:`.names`), fitted.

What a file holds goes in by name. A position embedding of another image size is interpolated; the
last projection may be missing or of another dimension, and stays random; anything else that does
not fit is refused by name, so that no encoder is half random unnoticed.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from mlcd.config.train import Train
from mlcd.data.preprocess import channels
from mlcd.models import trainable
from mlcd.models.initial import names, sources
from mlcd.models.initial.sources import Source
from mlcd.models.resize_weights import fitted
from mlcd.models.trainable import Encoder
from mlcd.utils.errors import UserError
from mlcd.utils.files import atomic_path, read_json, write_json
from mlcd.utils.logging import LOGGER

__all__ = ["Initial", "Source", "apply", "fit", "normalize", "read", "record", "tell", "write"]

#: The fitted weights and what is said of them, in a training's state folder.
WEIGHTS, RECORD = "initial.safetensors", "initial.json"
#: Ends of the names of a projection into the embedding space, which may stay random.
_PROJECTIONS = ("projection.weight", "trunk.proj", "trunk.head.proj.weight",
                "trunk.attnpool.c_proj.weight", "trunk.attnpool.c_proj.bias")  # fmt: skip
#: Names that are shown in a line of the log.
_SHOWN = 5


@dataclass(frozen=True)
class Initial:
    """`state`: weights and buffers by name, as the encoder has them. `about`: what encoder.json and
    the log say of them.
    """

    state: dict[str, Tensor]
    about: dict[str, Any]


def read(source: Source, section: Train) -> Initial:
    """Read the weights of `source` for the encoder of `section`, and fit them.

    Raises :class:`UserError` if they do not fit; the message names the first tensor.
    """
    encoder = trainable.build(section.model, section.embedding_dim, section.image_size)
    return fit(sources.read(source), encoder, source)


@torch.no_grad()
def fit(state: dict[str, Tensor], encoder: Encoder, source: Source) -> Initial:
    """Return what of `state` the encoder takes. Raises :class:`UserError`."""
    _check_kind(encoder, source)
    state = {**state, **_projection_beside(source)}
    own = encoder.state_dict()
    if source.packaged:
        naming, renamed = source.name, names.of_packaged(state, encoder)
    else:
        found = names.readings(state, encoder)
        naming, renamed = max(found, key=lambda reading: len(own.keys() & reading[1].keys()))
    taken: dict[str, Tensor] = {}
    interpolated, left, wrong = [], [], []
    for name, target in own.items():
        value = renamed.get(name)
        resized = None if value is None else _resized(name, value, target)
        if resized is not None and value is not None:
            taken[name] = resized.to(target.dtype).contiguous().clone()
            interpolated += [name] if value.shape != target.shape else []
        elif name in _PROJECTIONS:
            left.append(name)
        elif not name.endswith("num_batches_tracked"):
            had = "is missing" if value is None else f"is {list(value.shape)}"
            wrong.append(f"{name} {had}, expected {list(target.shape)}")
    if wrong or not taken:
        raise _misfit(encoder, source, wrong, len(own))
    if bad := next((n for n, v in taken.items() if not torch.isfinite(v).all()), None):
        raise UserError(f"train.initial: {source.name}: {bad} is not finite; take other weights")
    about = {
        "source": source.name,
        "sha256": source.sha256,
        "names": naming,
        "loaded": len(taken),
        "numbers": sum(value.numel() for value in taken.values()),
        "interpolated": interpolated,
        "random": left,
        "unused": sorted(renamed.keys() - own.keys() | (renamed.keys() & set(left))),
        "mean": list(source.mean or encoder.mean),
        "std": list(source.std or encoder.std),
    }
    return Initial(taken, about)


def write(initial: Initial, folder: Path) -> None:
    """Write fitted weights into a training's state folder, for all its ranks, and say what they
    are.
    """
    tell(initial.about)
    with atomic_path(folder / WEIGHTS) as temporary:
        save_file(dict(sorted(initial.state.items())), temporary)
    write_json(folder / RECORD, initial.about)


def tell(about: dict[str, Any]) -> None:
    """Say in the log what was loaded and what was not."""
    for words, what in (
        ("interpolated to the image size", about["interpolated"]),
        ("not in it, so random", about["random"]),
        ("in it and not used", about["unused"]),
    ):
        LOGGER.info("train.initial: %d tensors %s%s", len(what), words, _some(what))
    LOGGER.info(
        "train.initial: %s (SHA-256 %s, names of %s): %d tensors, %d numbers",
        about["source"], about["sha256"][:12], about["names"], about["loaded"], about["numbers"],
    )  # fmt: skip


def record(folder: Path) -> dict[str, Any]:
    """Return what :func:`write` said."""
    about: dict[str, Any] = read_json(folder / RECORD)
    return about


@torch.no_grad()
def apply(encoder: Encoder, folder: Path) -> None:
    """Set the weights that :func:`write` wrote; those that it lacks stay as they are."""
    own = encoder.state_dict()
    for name, value in load_file(folder / WEIGHTS).items():
        own[name].copy_(value)


def normalize(encoder: Encoder, about: dict[str, Any]) -> None:
    """Normalize images as those were that the first weights were trained on."""
    if about:
        encoder.mean, encoder.std = channels(about["mean"]), channels(about["std"])


def _resized(name: str, value: Tensor, target: Tensor) -> Tensor | None:
    """Return a value in the target's shape, None if it has none in it."""
    try:
        return fitted(name, value.float() if value.shape != target.shape else value, target.shape)
    except UserError:
        return None


def _projection_beside(source: Source) -> dict[str, Tensor]:
    """Return the projection that mlcd exports beside MLCDVisionModel, which ends before it."""
    path = source.path.parent / "projection.safetensors"
    if source.path.name != "model.safetensors" or not path.is_file():
        return {}
    weight = sources.read(Source(path, path.name, "")).get("weight")
    return {} if weight is None else {"projection.weight": weight}


def _check_kind(encoder: Encoder, source: Source) -> None:
    """Refuse what no shape tells: another activation, another number of heads."""
    blocks = getattr(getattr(encoder.trunk, "transformer", None), "resblocks", None)
    heads = None
    if blocks is not None:
        from open_clip.transformer import QuickGELU

        quick = any(isinstance(module, QuickGELU) for module in encoder.trunk.modules())
        if source.quick_gelu is not None and quick != source.quick_gelu:
            plain = encoder.model.removesuffix("-quickgelu")
            other = plain if quick else f"{plain}-quickgelu"
            trained = "QuickGELU" if source.quick_gelu else "GELU"
            raise UserError(
                f"train.initial: {source.name} was trained with {trained}, which {encoder.model} "
                f"has not; set train.model: {other}"
            )
        heads = getattr(getattr(blocks[0], "attn", None), "num_heads", None)
    size = getattr(encoder.trunk, "size", None)
    heads = getattr(size, "heads", heads)
    if None not in (source.heads, heads) and source.heads != heads:
        raise UserError(
            f"train.initial: {source.name} has {source.heads} heads of attention, {encoder.model} "
            f"{heads}; set train.model to its own"
        )


def _misfit(encoder: nn.Module, source: Source, wrong: list[str], count: int) -> UserError:
    model = encoder.model
    if len(wrong) > count // 2:
        return UserError(
            f"train.initial: {source.name} holds no weights of {model}: {len(wrong)} of its "
            f"{count} tensors are missing or of another shape ({wrong[0]}); set train.model to "
            "theirs"
        )
    more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
    return UserError(
        f"train.initial: {source.name} does not fit {model}: {wrong[0]}{more}; set train.model and "
        "train.image_size to those of the weights"
    )


def _some(found: list[str]) -> str:
    """Return ': a, b, …' of a few names, '' of none."""
    if not found:
        return ""
    more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
    return f": {', '.join(found[:_SHOWN])}{more}"
