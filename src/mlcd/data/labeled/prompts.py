"""Prompts and names of classes for zero-shot classification, from YAML.

Light enough for the workflow, which looks at these files before any work.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from mlcd.config import Evaluate
from mlcd.utils.errors import UserError

_BUILT_IN = Path(__file__).with_name("templates.yaml")


class _Loader(yaml.SafeLoader):
    """YAML whose plain words stay words: a class may be called no, 0 or 2024-01-01."""


_Loader.yaml_implicit_resolvers = {}


def templates(name: str) -> list[str]:
    """Return the prompts of a set of templates.yaml by name, or of a user's YAML by path.

    Each holds {} once, for the class. Raises :class:`UserError` for an unknown name or a file of
    another form.
    """
    if file_of(name) != _BUILT_IN:
        return _product(_load(Path(name)), name)
    sets = _load(_BUILT_IN)
    if name not in sets:
        raise UserError(
            f"evaluate.templates: no set is called {name!r}; known: {', '.join(sets)}, "
            "or the path of a .yaml"
        )
    return _product(sets[name], name)


def file_of(name: str) -> Path:
    """Return the file that a set of prompts lies in, by what `evaluate.templates` says."""
    return Path(name) if name.endswith((".yaml", ".yml")) else _BUILT_IN


def class_names(path: str | os.PathLike[str], classes: Sequence[str]) -> list[list[str]]:
    """Return the names of each class from a YAML of class → name or names.

    Raises :class:`UserError` naming the first class that it lacks.
    """
    found = _load(Path(path))
    names = []
    for word in classes:
        value = found.get(word)
        value = [value] if isinstance(value, str) else value
        if not (isinstance(value, list) and value and all(isinstance(v, str) and v for v in value)):
            raise UserError(f"{path}: class {word!r} has no name; add a line '{word}: its name'")
        names.append(value)
    return names


def check(section: Evaluate) -> list[str]:
    """Return the files that zero-shot scores rest on, prompts first, sorted within.

    Raises :class:`UserError` as :func:`templates` and :func:`class_names`, for what of it can be
    known without the images.
    """
    judged = [item for item in section.datasets if "zero_shot" in item.tasks]
    sets = sorted({section.templates, *(section.templates_of(item) for item in judged)})
    for name in sets:
        templates(name)
    names = sorted({item.class_names for item in judged if item.class_names is not None})
    for path in names:
        class_names(path, list(_load(Path(path))))
    return [*sorted({str(file_of(name)) for name in sets}), *names]


def _product(values: Any, name: str) -> list[str]:
    lists = [values.get(key) if isinstance(values, dict) else None for key in ("media", "subjects")]
    # A text would be taken for a list of its letters.
    if not all(isinstance(words, list) and all(isinstance(word, str) for word in words)
               for words in lists):  # fmt: skip
        raise UserError(f"{name}: expected lists 'media' and 'subjects'; see templates.yaml")
    prompts = [f"{medium} {subject}" for medium in values["media"] for subject in
               values["subjects"]]  # fmt: skip
    if not prompts or any(prompt.count("{}") != 1 for prompt in prompts):
        raise UserError(f"{name}: each prompt needs one {{}} where the class's name goes")
    return prompts


def _load(path: Path) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
    except (OSError, yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: not readable as YAML ({str(error).splitlines()[0]})") from None
    if not isinstance(values, dict):
        raise UserError(f"{path}: expected a mapping; see src/mlcd/data/labeled/templates.yaml")
    return values
