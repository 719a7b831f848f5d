"""A labeled image: its bytes, its split and what its data set says of it."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mlcd.config.labeled import Dataset
from mlcd.data.labeled.layout import SPLITS, split_of
from mlcd.utils.errors import UserError


@dataclass(frozen=True)
class Sample:
    """One image: its bytes in an image format, its split, and what is known about it."""

    key: str
    data: bytes
    split: str
    label: str | None = None
    tags: list[str] = field(default_factory=list)
    group: str | None = None
    captions: list[str] = field(default_factory=list)


def from_fields(
    dataset: Dataset,
    source: object,
    key: str,
    data: bytes,
    fields: dict[str, Any],
    split: str | None = None,
) -> Sample:
    """Return the sample of an image and its fields; `split` is given where no field says it.

    `source` is the file, for messages.
    """
    where = f"{source}: image {key}"
    if not isinstance(fields, dict):
        raise UserError(f"{where}: its JSON is not an object of fields; pack the data set anew")
    if split is None:
        found = fields.get(dataset.split_field)
        split = split_of(found)
        if split is None:
            raise UserError(
                f"{where}: field {dataset.split_field!r} is {found!r}; expected "
                f"{', '.join(SPLITS[:-1])} or {SPLITS[-1]} "
                "(evaluate.datasets.split_field names the field)"
            )
    tags: list[str] = []
    if dataset.tags_field is not None:
        given = fields.get(dataset.tags_field)
        given = [] if given is None else given
        if not isinstance(given, list) or not all(isinstance(tag, str) for tag in given):
            raise UserError(
                f"{where}: field {dataset.tags_field!r} is {given!r}; expected a list of words "
                "(evaluate.datasets.tags_field names the field)"
            )
        tags = sorted(set(given))
    return Sample(
        key=key,
        data=data,
        split=split,
        label=_word(where, dataset.label_field, "label_field", fields),
        tags=tags,
        group=_word(where, dataset.group_field, "group_field", fields),
        captions=_texts(where, dataset.caption_field, fields),
    )


def judged(splits: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return the splits (words [n]) with validation as test where there is none to judge by.

    That is, without test images, or where none of these has a class or tags (`known`, bool [n])
    and one of validation has: they are then of no split. So it is with ImageNet, whose test labels
    are not public.
    """
    held = np.isin(splits, ["test", "query", "gallery"])
    validation = splits == "validation"
    if held.any() and (known[held].any() or not known[validation].any()):
        return splits
    return np.where(validation, "test", np.where(held, "none", splits))


def _texts(where: str, name: str | None, fields: dict[str, Any]) -> list[str]:
    """Return the captions in a field, a text or a list of texts, without empty ones."""
    value = fields.get(name) if name is not None else None
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not all(isinstance(text, str) for text in values):
        raise UserError(
            f"{where}: field {name!r} is {value!r}; expected a text or a list of texts "
            "(evaluate.datasets.caption_field names the field)"
        )
    return [text.strip() for text in values if text.strip()]


def _word(where: str, name: str | None, option: str, fields: dict[str, Any]) -> str | None:
    """Return a field as text; None if the config names none, or the image has none."""
    value = fields.get(name) if name is not None else None
    if value is None or value == "":
        return None
    # −1 is how arrays and data set hubs write that there is no class.
    if option == "label_field" and re.fullmatch(r"-\d+", str(value)):
        return None
    if not isinstance(value, (str, int)):
        raise UserError(
            f"{where}: field {name!r} is {value!r}; expected a word "
            f"(evaluate.datasets.{option} names the field)"
        )
    return str(value)
