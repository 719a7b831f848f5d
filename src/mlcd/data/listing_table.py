"""The table of a listing: a row per file with images, read by the parts that are asked for."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

from mlcd.data.url_lists import open_parquet
from mlcd.utils.ownership import PARQUET_KEY

#: What a listing's metadata says that it is.
LISTING = "listing"
_GROUP_ROWS = 1 << 16


class Row(NamedTuple):
    """A file of a listing; its `images` take places `first` … `first + images − 1` of the line.

    `identity` is of the content of a tar, zip or parquet; the rest as :class:`.walk.File`.
    """

    path: bytes
    kind: str
    size: int
    texts: str
    text_size: int
    reason: str
    identity: str
    first: int
    images: int


def _schema() -> Any:
    import pyarrow as pa

    kinds = {bytes: pa.binary(), str: pa.string(), int: pa.int64()}
    fields = [(name, kinds[kind]) for name, kind in get_type_hints(Row).items()]
    return pa.schema(fields, metadata={PARQUET_KEY: LISTING})


def write(path: Path, found: Iterable[Row]) -> None:
    """Write rows as a listing; memory: a row group."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = _schema()
    pending: list[Row] = []

    def flush() -> None:
        columns = list(zip(*pending, strict=True)) or [()] * len(Row._fields)
        arrays = [
            pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)
        ]
        writer.write_table(pa.Table.from_arrays(arrays, schema=schema))
        pending.clear()

    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for row in found:
            pending.append(row)
            if len(pending) == _GROUP_ROWS:
                flush()
        flush()


def rows(path: str | os.PathLike[str], start: int = 0, stop: int | None = None) -> Iterator[Row]:
    """Iterate over the files of a listing that hold places [start, stop) of its line, whole files.

    Only the row groups needed are read.
    """
    file = open_parquet(Path(path))
    place = file.schema_arrow.get_field_index("first")
    for index in range(file.metadata.num_row_groups):
        group = file.metadata.row_group(index)
        if group.num_rows == 0:
            continue
        lowest = group.column(place).statistics.min
        if stop is not None and lowest >= stop:
            return
        if index + 1 < file.metadata.num_row_groups:
            after = file.metadata.row_group(index + 1)
            if after.num_rows and after.column(place).statistics.min <= start:
                continue
        table = file.read_row_group(index)
        for values in zip(*(column.to_pylist() for column in table.columns), strict=True):
            row = Row(*values)
            if row.first + row.images > start and (stop is None or row.first < stop):
                yield row


def is_listing(path: str | os.PathLike[str]) -> bool:
    """True if a file is a listing of ours."""
    if Path(path).suffix != ".parquet" or not Path(path).is_file():
        return False
    metadata = open_parquet(Path(path)).schema_arrow.metadata or {}
    return bool(metadata.get(PARQUET_KEY.encode()) == LISTING.encode())
