"""Read some columns of some rows of a URL list, as bytes, without holding the list in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mlcd.data import text_lists
from mlcd.data.url_lists import check_columns, check_parquet, list_format, open_parquet
from mlcd.utils.logging import LOGGER

#: One row: the bytes of the columns asked for; None where the row has no value.
Row = tuple[bytes | None, ...]

_BATCH_ROWS = 1 << 16


def read_rows(
    path: str | Path, columns: dict[str, str | None], start: int, stop: int
) -> Iterator[Row]:
    """Iterate over rows [start, stop) of a list, each a tuple of bytes in the order of `columns`.

    `columns` maps config keys of the section prepare to column names; a name of None gives None in
    every row. A txt list has a URL per line and nothing else. Of a parquet file only the row groups
    and columns needed are read. Raises :class:`UserError` if a column is missing or not of text.
    """
    kind = list_format(path)
    if kind == "parquet":
        return _parquet_rows(path, columns, start, stop)
    return _text_rows(path, columns, start, stop, kind.removesuffix(".gz"))


def _parquet_rows(
    path: str | Path, columns: dict[str, str | None], start: int, stop: int
) -> Iterator[Row]:
    import pyarrow as pa

    file = open_parquet(path)
    schema = file.schema_arrow
    check_parquet(path, columns, schema)
    wanted = [name for name in columns.values() if name is not None]
    groups: list[int] = []
    first, end = 0, 0
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
        raise text_lists.damaged(path, error) from None


def _text_rows(
    path: str | Path, columns: dict[str, str | None], start: int, stop: int, kind: str
) -> Iterator[Row]:
    names = ["url_column"] if kind == "txt" else text_lists.header(path, kind)
    if kind == "txt":
        places = [0 if key == "url_column" else None for key in columns]
    else:
        check_columns(path, columns, names)
        places = [None if name is None else names.index(name) for name in columns.values()]
    if text_lists.has_open_quotes(path, kind):
        LOGGER.warning(
            "%s: fields begin with quotes that are not closed as a program would; each line is "
            "taken as a row, with its quotes", path,
        )  # fmt: skip
    for record in text_lists.rows_of(path, kind, start, stop):
        yield tuple(
            None if at is None or at >= len(record) else record[at].encode("latin-1")
            for at in places
        )
