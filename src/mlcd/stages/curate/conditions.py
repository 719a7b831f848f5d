"""Conditions on columns, applied to values of whatever type a column is."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mlcd.config.curate import Condition
from mlcd.utils.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

#: Truth values, as texts in any case.
_TRUTH = ("true", "false")
_COMPARE: dict[str, Callable[[Any, Any], Any]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
    "=": operator.eq, "!=": operator.ne,
}  # fmt: skip


def words(conditions: Sequence[Condition]) -> list[str]:
    """Return why an image may be refused: of each condition, that it fails, that there is no value.

    Their places are what :func:`refused` returns.
    """
    return [word for one in conditions for word in (f"{one} fails", f"no {one.column}")]


def refused(
    conditions: Sequence[Condition], values: Callable[[str], pa.Array], path: str
) -> np.ndarray:
    """Return the place in :func:`words` of the first condition that fails, int16 [n]; −1: none.

    `values` gives a column by its name, null where an image has no value; `path` is named where a
    column is of a type that a condition cannot compare. Raises :class:`UserError`.
    """
    found: np.ndarray | None = None
    read: dict[str, pa.Array] = {}
    for place, condition in enumerate(conditions):
        if condition.column not in read:
            read[condition.column] = values(condition.column)
        column = read[condition.column]
        if found is None:
            found = np.full(len(column), -1, np.int16)
        holds, there = _compared(condition, column, path)
        found[(found < 0) & ~there] = 2 * place + 1
        found[(found < 0) & ~holds] = 2 * place
    assert found is not None, "there is a condition"
    return found


def _compared(condition: Condition, column: pa.Array, path: str) -> tuple[np.ndarray, np.ndarray]:
    """Return whether each value holds, and whether there is one; bool [n] each."""
    import pyarrow as pa

    kind, value = column.type, condition.value
    there = column.is_valid().to_numpy(zero_copy_only=False)
    is_text = pa.types.is_large_binary(kind) or pa.types.is_null(kind)
    if isinstance(value, float) and (is_text or _is_number(kind)):
        numbers = _numbers(column)
        there = there & ~np.isnan(numbers)
        return _COMPARE[condition.operator](numbers, value), there
    if isinstance(value, str) and (is_text or pa.types.is_boolean(kind)):
        texts = [_text(one) for one in column.to_pylist()]
        if value.lower() in _TRUTH:
            # Python writes True, others TRUE.
            value, texts = value.lower(), [one.lower() if one else one for one in texts]
        elif pa.types.is_boolean(kind):
            raise UserError(
                f"{path}: column {condition.column!r} has truth values, and {str(condition)!r} "
                "compares with another word; write true or false"
            )
        # A csv cannot tell an empty text from none.
        there = there & np.array([value == "" or one != "" for one in texts], bool)
        same = np.array([one == value for one in texts], bool)
        return same == (condition.operator == "="), there
    raise UserError(
        f"{path}: column {condition.column!r} is of type {kind}, which {str(condition)!r} cannot "
        "compare; numbers are compared with numbers, texts with texts in quotes, truth values "
        "with true or false"
    )


def _is_number(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(
        pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)
    )


def _numbers(column: pa.Array) -> np.ndarray:
    """Return float64 [n]; NaN where there is no number."""
    import pyarrow as pa

    if _is_number(column.type):
        # Numbers compare as float64 does: of integers over 2^53 the last digits are lost.
        doubles = column.cast(pa.float64(), safe=False)
        cast: np.ndarray = doubles.to_numpy(zero_copy_only=False)
        return cast
    return np.array([_number(one) for one in column.to_pylist()], np.float64)


def _number(text: bytes | None) -> float:
    try:
        # No underscores: 1_000 is no number to other programs.
        return float("nan") if text is None or b"_" in text else float(text)
    except ValueError:
        return float("nan")


def _text(value: bytes | bool | None) -> str | None:
    if isinstance(value, bool):
        return "true" if value else "false"
    return None if value is None else value.decode("utf-8", "replace")
