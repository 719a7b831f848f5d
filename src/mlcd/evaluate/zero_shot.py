"""Zero-shot classification: classes are named in prompts, a text tower embeds them (CLIP, LiT)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch.nn.functional import normalize

from mlcd.encoders import text as towers
from mlcd.errors import UserError

_BUILT_IN = Path(__file__).with_name("templates.yaml")


def templates(name: str) -> list[str]:
    """Return the prompts of a set of templates.yaml by name, or of a user's YAML by path.

    Each holds {} once, for the class. Raises :class:`UserError` for an unknown name or a file of
    another form.
    """
    if name.endswith((".yaml", ".yml")):
        return _product(_load(Path(name)), name)
    sets = _load(_BUILT_IN)
    if name not in sets:
        raise UserError(
            f"evaluate.templates: no set is called {name!r}; known: {', '.join(sets)}, "
            "or the path of a .yaml"
        )
    return _product(sets[name], name)


def class_names(path: str | os.PathLike[str], classes: Sequence[str]) -> list[list[str]]:
    """Return the names of each class from a YAML of class → name or names.

    Raises :class:`UserError` naming the first class that it lacks.
    """
    found = _load(Path(path))
    names = []
    for word in classes:
        # YAML reads a class called 0 as a number.
        value = found.get(word, found.get(int(word)) if word.isdigit() else None)
        value = [value] if isinstance(value, str) else value
        if not (isinstance(value, list) and value and all(isinstance(v, str) for v in value)):
            raise UserError(f"{path}: class {word!r} has no name; add a line '{word}: its name'")
        names.append(value)
    return names


def class_weights(
    tower: towers.TextTower, names: Sequence[Sequence[str]], prompts: Sequence[str]
) -> torch.Tensor:
    """Return unit rows float32 [classes, d]: the mean over a class's names in all prompts.

    Each prompt's feature is normalised before the mean, as in CLIP's ensemble.
    """
    rows = []
    for of_class in names:
        texts = [prompt.replace("{}", name).strip() for name in of_class for prompt in prompts]
        rows.append(towers.encode(tower, texts).mean(0))
    return normalize(torch.stack(rows), dim=1)


def similarities(feature: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return similarities float32 [n, classes] of pictures' features [n, d]."""
    return normalize(feature.float(), dim=1) @ weights.T


def _product(values: Any, name: str) -> list[str]:
    try:
        prompts = [f"{medium} {subject}" for medium in values["media"] for subject in
                   values["subjects"]]  # fmt: skip
    except (TypeError, KeyError):
        raise UserError(
            f"{name}: expected lists 'media' and 'subjects'; see templates.yaml"
        ) from None
    if not prompts or any(prompt.count("{}") != 1 for prompt in prompts):
        raise UserError(f"{name}: each prompt needs one {{}} where the class's name goes")
    return prompts


def _load(path: Path) -> dict[Any, Any]:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping; see src/mlcd/evaluate/templates.yaml")
    return values
