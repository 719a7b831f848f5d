"""Read some columns of some rows of a URL list, as bytes, without holding the list in memory."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from mlcd.errors import UserError
from mlcd.plan import (
    READ_ERRORS,
    check_columns,
    csv_records,
    damaged,
    list_format,
    open_parquet,
    open_text,
)

#: One row: the bytes of the columns asked for; None where the row has no value.
Row = tuple[bytes | None, ...]

_BATCH_ROWS = 1 << 16


def read_rows(
    path: str | Path, columns: dict[str, str | None], start: int, stop: int
) -> Iterator[Row]:
    """Iterate over rows [start, stop) of a list, each a tuple of bytes in the order of `columns`.

    `columns` maps config keys of the section prepare to column names; a name of None gives None in
    every row. A txt list has a URL a line and nothing else. Of a parquet file only the row groups
    and columns needed are read. Raises :class:`UserError` if a column is missing or not of text.
    """
    kind = list_format(path)
    if kind == "parquet":
        return _parquet_rows(path, columns, start, stop)
    if kind.startswith("txt"):
        return _txt_rows(path, columns, start, stop)
    return _table_rows(path, columns, start, stop, kind.startswith("csv"))


def _parquet_rows(
    path: str | Path, columns: dict[str, str | None], start: int, stop: int
) -> Iterator[Row]:
    import pyarrow as pa

    file = open_parquet(path)
    schema = file.schema_arrow
    check_columns(path, columns, schema.names)
    wanted = [name for name in columns.values() if name is not None]
    for key, name in columns.items():
        if name is not None and not _is_text(schema.field(name).type):
            raise UserError(
                f"{path}: column {name!r} is of type {schema.field(name).type}, expected text; "
                f"set prepare.{key} to another column"
            )
    groups, first, end = [], 0, 0
    for index in range(file.metadata.num_row_groups):
        begin, end = end, end + file.metadata.row_group(index).num_rows
        if begin < stop and start < end:
            first = begin if not groups else first
            groups.append(index)
    at = first
    try:
        for batch in file.iter_batches(_BATCH_ROWS, row_groups=groups, columns=wanted):
            low, high = max(start - at, 0), min(stop - at, len(batch))
            at += len(batch)
            if low >= high:
                continue
            part = batch.slice(low, high - low)
            # Text is taken as bytes: parquet files written elsewhere do not always hold UTF-8
            # where they say so.
            values = [
                [None] * len(part)
                if name is None
                else part.column(part.schema.get_field_index(name)).cast(pa.large_binary())
                for name in columns.values()
            ]
            lists = [value if isinstance(value, list) else value.to_pylist() for value in values]
            yield from zip(*lists, strict=True)
    except (pa.ArrowException, OSError) as error:
        raise damaged(path, error) from None


def _is_text(kind) -> bool:
    """True for strings, binaries, dictionaries of them, and for a column of nulls alone."""
    import pyarrow.types as types

    if types.is_dictionary(kind):
        kind = kind.value_type
    tests = (
        types.is_string, types.is_large_string, types.is_string_view, types.is_binary,
        types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary, types.is_null,
    )  # fmt: skip
    return any(test(kind) for test in tests)


def _table_rows(
    path: str | Path, columns: dict[str, str | None], start: int, stop: int, quoted: bool
) -> Iterator[Row]:
    """Rows of csv (RFC 4180 quotes) or of tsv, where a row is a line and a quote is a quote."""
    with open_text(path) as handle:
        records = csv_records(path, handle) if quoted else _tsv_records(path, handle)
        header = [_utf8(name) for name in next(records, [])]
        if header:
            header[0] = header[0].removeprefix("\ufeff")
        check_columns(path, columns, header)
        places = [None if name is None else header.index(name) for name in columns.values()]
        for record in islice(records, start, stop):
            yield tuple(
                None if at is None or at >= len(record) else record[at].encode("latin-1")
                for at in places
            )


def _tsv_records(path: str | Path, handle: Iterator[bytes]) -> Iterator[list[str]]:
    for line in _lines(path, handle):
        yield line.decode("latin-1").split("\t")


def _txt_rows(
    path: str | Path, columns: dict[str, str | None], start: int, stop: int
) -> Iterator[Row]:
    with open_text(path) as handle:
        for line in islice(_lines(path, handle), start, stop):
            yield tuple(line if key == "url_column" else None for key in columns)


def _lines(path: str | Path, handle: Iterator[bytes]) -> Iterator[bytes]:
    try:
        for line in handle:
            yield line.rstrip(b"\r\n")
    except READ_ERRORS as error:
        raise damaged(path, error) from None


def _utf8(latin: str) -> str:
    return latin.encode("latin-1").decode("utf-8", "replace")
