"""What every section shares: refusal of unknown keys, one-line messages, the nearest key."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping
from typing import Any, ClassVar, Self, TypeVar, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError, ValidationInfo, field_validator
from pydantic.fields import FieldInfo
from pydantic_core import PydanticCustomError

from mlcd.config.files import Origins, key_of, quoted, shown
from mlcd.utils.errors import UserError

#: No whole number is larger: beyond it neither JSON nor a float holds them all.
MOST = 2**53
#: No image has more pixels on a side, in any stage.
MOST_SIDE = 4096
#: No learning rate is larger: float32 and AdamW give nothing but noise by then.
MOST_RATE = 10.0
#: No seed is larger, since some libraries take 32 bits.
MOST_SEED = 2**32 - 1
#: Characters of a validator's message that are shown.
_LONGEST = 600
#: Snakemake's wildcards: {name} and {name,pattern}.
_WILDCARD = re.compile(r"\{\s*\w+\s*(,[^{}]*)?\}")
Model = TypeVar("Model", bound=BaseModel)


class Section(BaseModel):
    """Base of all sections: unknown keys are refused, values cannot change after validation.

    Numbers are finite, and no truth value is taken for one; "3" is 3, as the command line gives it.
    """

    #: Keys of earlier releases → their present names, for the message that refuses them.
    renamed: ClassVar[dict[str, str]] = {}

    model_config = ConfigDict(
        extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False
    )

    @field_validator("*", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: Any, info: ValidationInfo) -> Any:
        """Take one text or number, such as metadata=FOLDER, where a list of them is expected."""
        kinds = _listed(cls.model_fields[str(info.field_name)])
        # A number may come as text, and a whole one where any is expected.
        taken = kinds | {str} | ({int} if float in kinds else set())
        one = kinds and kinds <= {str, int, float} and type(value) in taken
        return [value] if one else value

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth_value_as_number(cls, value: Any, info: ValidationInfo) -> Any:
        kinds = _leaves(cls.model_fields[str(info.field_name)].annotation)
        items = value if isinstance(value, list) else [value]
        if kinds & {int, float} and bool not in kinds:
            for item in items:
                if isinstance(item, bool):
                    raise PydanticCustomError("bool_for_number", "a number")
        return value

    @field_validator("*")
    @classmethod
    def _no_number_beyond_all_use(cls, value: Any) -> Any:
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, int) and abs(item) > MOST:
                raise PydanticCustomError("too_large", f"a number of at most {MOST}")
        return value

    @field_validator("*")
    @classmethod
    def _no_word_in_braces(cls, value: Any) -> Any:
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, str):
                refuse_wildcard(item)
        return value

    def to_json(self) -> str:
        """Return the section as one line of JSON with sorted keys, equal for equal values."""
        return as_json(self.model_dump(mode="json"))

    def sealed(self) -> dict[str, Any] | None:
        """Return the keys that the run's results depend on, in JSON's values, for its seal.

        None: the stage is no part of the run.
        """
        return self.model_dump(mode="json")

    def changed(self, **changes: Any) -> Self:
        """Return a copy with other values of some keys, validated as a whole.

        Raises :class:`pydantic.ValidationError`, a ValueError, if they do not fit the others.
        """
        return type(self).model_validate({**self.model_dump(mode="json"), **changes})


def refuse_wildcard(text: str) -> None:
    """Raise ValueError for a word in braces: rules, which carry all values, take it for a wildcard.

    Snakemake would stop with words that name neither the key nor the value.
    """
    if found := _WILDCARD.search(text):
        raise ValueError(
            f"{quoted(text)}: rules take {found[0]} for a wildcard; write it without braces, or "
            "rename the file"
        )


def as_json(values: Mapping[str, Any]) -> str:
    """Return some keys of a section as one line of JSON, as :meth:`Section.to_json` does all.

    Rules carry it as a parameter and pass it to `mlcd STAGE --config`: keys that are not in it make
    no result of the stage stale.
    """
    return json.dumps(values, sort_keys=True)


def validate(
    model: type[Model], values: dict[str, Any], source: str | Origins, prefix: str = ""
) -> Model:
    """Validate `values` as `model`.

    `source` names the file or command line, for each key its own if it is an :class:`Origins`, and
    `prefix` the section, for messages. Raises :class:`UserError` with one line per mistake: the
    key's path, what was expected, the nearest key.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = []
        for item in error.errors():
            line = _explain(model, item, prefix)
            path = _path(item) or key_of(line)
            lines.append(f"{source if isinstance(source, str) else source(path)}: {line}")
        raise UserError("\n".join(lines)) from None


def _listed(field: FieldInfo) -> set[type]:
    """Return the types of the items of a key whose value is a list (or null), else none."""
    lists = [kind for kind in (field.annotation, *get_args(field.annotation))
             if get_origin(kind) is list]  # fmt: skip
    return _leaves(lists[0]) if lists else set()


def _leaves(annotation: Any) -> set[type]:
    """Return the types in an annotation, those of a Literal's choices included."""
    return {leaf if isinstance(leaf, type) else type(leaf) for leaf in _values(annotation)}


def _path(item: Any) -> list[Any]:
    """Return the keys that lead to what a pydantic error is about."""
    return [part for part in item["loc"] if not str(part).startswith("function-")]


def _explain(model: type[BaseModel], item: Any, prefix: str) -> str:
    """Turn one pydantic error into a sentence that names the key and the fix."""
    path = _path(item)
    name = ".".join([prefix, *map(shown, path)] if prefix else map(shown, path)) or "config"
    kind, context, value = item["type"], item.get("ctx", {}), item.get("input")
    if kind == "extra_forbidden":
        return f"{name}: unknown key{_nearest(model, path)}"
    if kind == "missing":
        return f"{name}: this key is required"
    limits = {
        "greater_than": ("gt", "more than"),
        "greater_than_equal": ("ge", "at least"),
        "less_than": ("lt", "less than"),
        "less_than_equal": ("le", "at most"),
    }
    if kind in limits:
        key, words = limits[kind]
        return f"{name}: expected {words} {context[key]}, got {quoted(value)}"
    if kind == "literal_error":
        close = difflib.get_close_matches(shown(value)[:100], _choices(model, path), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        return f"{name}: expected {context['expected']}, got {quoted(value)}{hint}"
    if kind == "model_type":
        return f"{name}: expected keys, each with its value, got {quoted(value)}"
    message = item["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
    # A validator's own words may quote what was given.
    message = shown(message) if "\n" in message or len(message) > _LONGEST else message
    if kind == "value_error":
        return f"{name}: {message}" if path or prefix else message
    if isinstance(value, dict):
        return f"{name}: expected one value, got keys ({shown(', '.join(map(shown, value)))})"
    return f"{name}: expected {message}, got {quoted(value)}"


def _nearest(model: type[BaseModel], path: list[Any]) -> str:
    """Return '; did you mean …?' for an unknown key, looked for in its place, then everywhere."""
    here = _descend(model, path[:-1])
    unknown = str(path[-1])[:100]
    if new := getattr(here, "renamed", {}).get(unknown):
        return f"; it is now called {new}"
    found = difflib.get_close_matches(unknown, list(here.model_fields), n=1, cutoff=0.6)
    if found:
        return f"; did you mean {'.'.join([*map(str, path[:-1]), found[0]])}?"
    if here is model:
        for section, field in model.model_fields.items():
            inner = field.annotation
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                found = difflib.get_close_matches(
                    unknown, list(inner.model_fields), n=1, cutoff=0.8
                )
                if found:
                    return f"; did you mean {section}.{found[0]}?"
    return f"; known keys: {', '.join(here.model_fields)}"


def _descend(model: type[BaseModel], path: list[Any]) -> type[BaseModel]:
    """Follow `path` through nested models (and lists of models)."""
    for part in path:
        field = model.model_fields.get(str(part))
        if field is None:
            continue
        candidates = [field.annotation, *get_args(field.annotation)]
        inner = [c for c in candidates if isinstance(c, type) and issubclass(c, BaseModel)]
        if inner:
            model = inner[0]
    return model


def _choices(model: type[BaseModel], path: list[Any]) -> list[str]:
    """Return the allowed words of a Literal field, or of a list of them."""
    path = path[:-1] if isinstance(path[-1], int) else path
    field = _descend(model, path[:-1]).model_fields.get(str(path[-1]))
    return (
        [choice for choice in _values(field.annotation) if isinstance(choice, str)] if field else []
    )


def _values(annotation: Any) -> list[Any]:
    """Return the innermost arguments of an annotation, such as a Literal's choices."""
    inner = get_args(annotation)
    return [leaf for one in inner for leaf in _values(one)] if inner else [annotation]
