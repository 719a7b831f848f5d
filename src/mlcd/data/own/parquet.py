"""Rows in a column of a parquet, and keys in another."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from mlcd.data.own.base import LABEL, SLAB, Array, What, require
from mlcd.data.url_lists import is_text, open_parquet
from mlcd.utils.errors import UserError


class Parquet(Array):
    """A parquet with a column of lists of numbers; any other column may be the key."""

    def __init__(self, path: str | os.PathLike[str], what: What) -> None:
        import pyarrow.types as types

        super().__init__(path, what)
        require(self.path)
        file = open_parquet(self.path)
        schema = file.schema_arrow
        lists = [
            field.name
            for field in schema
            if (types.is_list(field.type) or types.is_large_list(field.type)
                or types.is_fixed_size_list(field.type))
            and _dtype(field.type.value_type).kind in what.kinds
        ]  # fmt: skip
        plain = [f.name for f in schema if what is LABEL and _dtype(f.type).kind in what.kinds]
        found = [name for name in lists + plain if name == what.name]
        found = found or (lists if len(lists) == 1 else [])
        if len(found) != 1:
            raise UserError(
                f"{path}: expected a column {what.name!r} of lists of {what.numbers}, found "
                f"{', '.join(map(repr, schema.names[:30])) or 'none'}; rename or write it"
            )
        self._name = found[0]
        kind = schema.field(self._name).type
        rows = file.metadata.num_rows
        if self._name in plain and self._name not in lists:
            self.set_shape((rows,), _dtype(kind))
            return
        size = kind.list_size if types.is_fixed_size_list(kind) else self._first(file)
        self.set_shape((rows, size), _dtype(kind.value_type))

    def _first(self, file: Any) -> int:
        """Return the length of the first list; that of all others is compared when it is read."""
        for batch in file.iter_batches(1, columns=[self._name]):
            value = batch.column(0)[0].as_py()
            return 0 if value is None else len(value)
        return 1

    def read(self, start: int, stop: int) -> np.ndarray:
        """Return rows start … stop − 1."""
        blocks = list(self._blocks(start, stop))
        return np.concatenate(blocks) if blocks else np.zeros((0, self.width), np.float32)

    def take(self, ids: np.ndarray) -> np.ndarray:
        """Return the rows `ids` (rising); row groups without one are left out."""
        metadata = open_parquet(self.path).metadata
        parts, first = [], 0
        for group in range(metadata.num_row_groups):
            last = first + metadata.row_group(group).num_rows
            wanted = ids[np.searchsorted(ids, first) : np.searchsorted(ids, last)]
            if len(wanted):
                at = int(wanted[0])
                for block in self._blocks(at, int(wanted[-1]) + 1):
                    end = at + len(block)
                    some = wanted[np.searchsorted(wanted, at) : np.searchsorted(wanted, end)]
                    parts.append(block[some - at])
                    at = end
            first = last
        return np.concatenate(parts) if parts else self.read(0, 0)

    def _blocks(self, start: int, stop: int) -> Iterator[np.ndarray]:
        import pyarrow as pa

        file = open_parquet(self.path, buffer_size=1 << 20)
        ends = np.cumsum(
            [0, *(file.metadata.row_group(g).num_rows for g in range(file.num_row_groups))]
        )
        first = max(0, int(np.searchsorted(ends, start, "right")) - 1)
        last = int(np.searchsorted(ends, stop, "left"))
        at = int(ends[first]) if start < stop else stop
        try:
            batches = file.iter_batches(
                SLAB, columns=[self._name], row_groups=list(range(first, last))
            )
            for batch in batches if start < stop else ():
                low, high = max(start - at, 0), min(stop - at, len(batch))
                if low < high:
                    yield self._numbers(batch.column(0).slice(low, high - low), at + low)
                at += len(batch)
        except (pa.ArrowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{self.path}: damaged ({reason}); copy it again") from None

    def _numbers(self, column: Any, first: int) -> np.ndarray:
        import pyarrow.compute as pc
        import pyarrow.types as types

        nested = not types.is_integer(column.type)
        bad = pc.is_null(column).to_numpy(zero_copy_only=False)
        if nested and not types.is_fixed_size_list(column.type):
            lengths = pc.list_value_length(column).to_numpy(zero_copy_only=False)
            bad = bad | (lengths != self.width)
        values = column.flatten() if nested else column
        if not bad.any() and values.null_count and self.what is LABEL:
            bad = np.ones(1, bool)
        if bad.any():
            raise UserError(
                f"{self.path}: row {first + int(np.argmax(bad))} of {self._name!r} has not the "
                f"{self.width} numbers of the first; leave it out"
            )
        flat: np.ndarray = values.to_numpy(zero_copy_only=False)
        return flat.reshape(-1, self.width)

    def names(self, key: str) -> Iterator[Any]:
        """Iterate over the column `key`."""
        return column_of(self.path, key)

    def check_key(self, key: str) -> None:
        """Look for the column."""
        check_column(self.path, key, self.rows, self.path)


def _dtype(kind: Any) -> np.dtype:
    try:
        found: np.dtype = np.dtype(kind.to_pandas_dtype())
    except (NotImplementedError, TypeError):
        return np.dtype(object)
    return found


def check_column(path: Path, key: str, rows: int, of: Path) -> None:
    file = open_parquet(path)
    names = file.schema_arrow.names
    if names.count(key) != 1 or not is_text(file.schema_arrow.field(key).type):
        raise UserError(
            f"{path}: expected one column {key!r} of text, as the key says; its columns are "
            f"{', '.join(map(repr, names[:30]))}"
        )
    if file.metadata.num_rows != rows:
        raise UserError(
            f"{path}: {file.metadata.num_rows} rows, but {of} has {rows}; one belongs to each"
        )


def column_of(path: Path, key: str) -> Iterator[Any]:
    import pyarrow as pa

    try:
        for batch in open_parquet(path).iter_batches(1 << 17, columns=[key]):
            column = batch.column(0)
            if pa.types.is_dictionary(column.type):
                column = column.dictionary_decode()
            # By way of bytes: parquet does not check that its strings are UTF-8.
            yield column.cast(pa.large_binary())
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path}: damaged ({str(error).splitlines()[0]}); copy it again") from None
