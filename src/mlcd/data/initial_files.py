"""What `train.initial` names, known without importing a library: a tag, or files on this machine.

A folder stands for the file of weights in it: what decides the run is what that file holds.
"""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path
from typing import Any, BinaryIO

from mlcd.config import encoders
from mlcd.config.files import quoted
from mlcd.utils.errors import UserError
from mlcd.utils.files import read_json

#: Files of weights in a folder, the first that is there: of mlcd, its export for open_clip,
#: open_clip, and the hub.
WEIGHTS = (
    "encoder.safetensors", "image_tower.safetensors", "open_clip_model.safetensors",
    "open_clip_pytorch_model.safetensors", "model.safetensors", "pytorch_model.bin",
)  # fmt: skip
#: Descriptions beside the weights: of mlcd, open_clip, and of transformers or timm.
OURS, OPEN_CLIP, OTHER = "encoder.json", "open_clip_config.json", "config.json"
#: How transformers and timm name the list of the files of weights that lie in several.
_INDEX = "model.safetensors.index.json"
#: Longest header of safetensors, as its own readers have it.
_MOST_HEADER = 100_000_000


def is_tag(initial: str, model: str) -> bool:
    """True if `initial` is a tag of pretrained weights of a `model`, not a path."""
    return initial in encoders.tags(model)


def weights(initial: str) -> Path:
    """Return the file of weights that a path names. Raises :class:`UserError`."""
    path = Path(initial)
    if not path.is_dir():
        return path
    for name in WEIGHTS:
        if (path / name).exists():
            return path / name
    if (path / _INDEX).exists():
        raise UserError(
            f"train.initial: {initial} has weights in several files; save them as one "
            "(save_pretrained with a larger max_shard_size)"
        )
    raise UserError(
        f"train.initial: {initial} holds none of {', '.join(WEIGHTS)}; name a file or another "
        "folder"
    )


def files(initial: str | None, model: str) -> list[Path]:
    """Return the files that the first weights come from, those of weights first; [] for a tag.

    Raises :class:`UserError`.
    """
    if initial is None or is_tag(initial, model):
        return []
    path = weights(initial)
    names = (OURS, OPEN_CLIP, OTHER, "preprocessor_config.json", "projection.safetensors")
    return [path, *(path.parent / name for name in names if _describes(path, name))]


def problem(initial: str, model: str) -> str | None:
    """Return what is wrong with train.initial as far as names and headers tell; None for nothing.

    The message begins without the key.
    """
    if is_tag(initial, model):
        # The packaged weights may not be installed; others are fetched.
        return encoders.frozen_problem(initial) if initial == encoders.PACKAGED else None
    try:
        path = weights(initial)
        readable = path.is_file() and os.access(path, os.R_OK)
    except UserError as error:
        return str(error).removeprefix("train.initial: ")
    except (OSError, ValueError):  # a name that is too long, or holds a zero
        readable = False
    if not readable:
        known = sorted(encoders.tags(model))
        tags = f" (its tags: {', '.join(known)})" if known else ""
        return (
            f"{quoted(initial)} is neither a tag of {model} nor weights on disk; correct it{tags}"
        )
    if path.suffix == ".safetensors" and (wrong := _header_problem(path)):
        return f"{path} is no file of safetensors ({wrong}); fetch or write it anew"
    return _other_model(path, model)


def described(path: Path, name: str) -> Any:
    """Return a description beside the weights `path`, {} if there is none for them."""
    return read_json(path.parent / name, dict) if _describes(path, name) else {}


def _describes(path: Path, name: str) -> bool:
    """True if a file of this name lies beside the weights and is about them.

    A folder may hold encoder.json and the files of transformers; each describes its own weights.
    """
    own = {OURS: WEIGHTS[:1], OPEN_CLIP: WEIGHTS[1:4]}
    fits = path.name in own.get(name, WEIGHTS[4:])
    return fits and (path.parent / name).is_file()


def _other_model(path: Path, model: str) -> str | None:
    try:
        found = described(path, OURS).get("model", model)
    except UserError as error:
        return str(error)
    if found != model:
        return (
            f"{path} holds {quoted(found)}, and train.model is {model}; set that, or other weights"
        )
    return None


def _header_problem(path: Path) -> str | None:
    """Return why a file cannot be safetensors, by its first bytes."""
    with path.open("rb") as file:
        return _problem_of(file, path.stat().st_size)


def _problem_of(file: BinaryIO, size: int) -> str | None:
    first = file.read(8)
    if len(first) < 8:
        return "it is too short"
    (length,) = struct.unpack("<Q", first)
    if length > min(_MOST_HEADER, size - 8):
        return "its header would be longer than the file"
    try:
        header = json.loads(file.read(length))
        ends = [about["data_offsets"][1] for name, about in header.items() if name[:2] != "__"]
        return None if 8 + length + max(ends, default=0) == size else "it is cut off"
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return "its header is damaged"
