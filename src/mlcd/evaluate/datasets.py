"""Labelled pictures, whatever they lie in: each kind of data set is an iterator of samples."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlcd.config import Evaluate
from mlcd.config.evaluate import Dataset
from mlcd.errors import UserError
from mlcd.stores.images import labelled_members


@dataclass(frozen=True)
class Sample:
    """One picture: its bytes as found, its side of the split, and what is known about it."""

    key: str
    data: bytes
    train: bool
    label: str | None = None
    tags: list[str] = field(default_factory=list)
    group: str | None = None


def find(section: Evaluate, name: str) -> Dataset:
    """Return the data set called `name`. Raises :class:`UserError` if the config has none."""
    for dataset in section.datasets:
        if dataset.name == name:
            return dataset
    known = ", ".join(dataset.name for dataset in section.datasets)
    raise UserError(f"evaluate.datasets: none is called {name!r}; known: {known}")


def samples(dataset: Dataset) -> Iterator[Sample]:
    """Iterate over a data set in its own order.

    Raises :class:`UserError` with the file and the key of the picture whose fields are not what
    the config says, or if the file is of a kind that cannot be read.
    """
    kind = Path(dataset.path).suffix
    if kind != ".tar":
        raise UserError(
            f"evaluate.datasets: {dataset.path}: expected a webdataset .tar, got {kind or 'no'} "
            "suffix; pack it as KEY.jpg with KEY.json"
        )
    for key, data, fields in labelled_members(dataset.path):
        yield _sample(dataset, key, data, fields)


def _sample(dataset: Dataset, key: str, data: bytes, fields: dict[str, Any]) -> Sample:
    where = f"{dataset.path}: picture {key}"
    if not isinstance(fields, dict):
        raise UserError(f"{where}: its JSON is not an object of fields; pack the data set anew")
    split = fields.get(dataset.split_field)
    if split not in ("train", "test"):
        raise UserError(
            f"{where}: field {dataset.split_field!r} is {split!r}; expected train or test "
            "(evaluate.datasets.split_field names the field)"
        )
    tags: list[str] = []
    if dataset.tags_field is not None:
        found = fields.get(dataset.tags_field) or []
        if not isinstance(found, list) or not all(isinstance(tag, str) for tag in found):
            raise UserError(
                f"{where}: field {dataset.tags_field!r} is {found!r}; expected a list of words "
                "(evaluate.datasets.tags_field names the field)"
            )
        tags = sorted(set(found))
    return Sample(
        key=key,
        data=data,
        train=split == "train",
        label=_word(where, dataset.label_field, "label_field", fields),
        tags=tags,
        group=_word(where, dataset.group_field, "group_field", fields),
    )


def _word(where: str, name: str | None, option: str, fields: dict[str, Any]) -> str | None:
    """Return a field as text; None if the config names none, or the picture has none."""
    value = fields.get(name) if name is not None else None
    if value is None or value == "":
        return None
    if not isinstance(value, (str, int)):
        raise UserError(
            f"{where}: field {name!r} is {value!r}; expected a word "
            f"(evaluate.datasets.{option} names the field)"
        )
    return str(value)
