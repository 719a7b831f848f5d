"""Columns that people bring: in the lists of `metadata`, or in tables of their own.

    table = Table([Part("laion.parquet", 0, 600)], "url")
    for first, keys in table.names("url"): ...      # which image a row is of
    values = table.take("aesthetic", ids)           # pyarrow array of the rows `ids`

A row is read as it stands: numbers as numbers, texts as texts. Of parquet only the columns asked
for are read, of other lists every line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from mlcd.data import text_lists
from mlcd.data.url_lists import count_rows, expand_lists, is_text, list_format, open_parquet
from mlcd.utils.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    import pyarrow as pa

    from mlcd.config import Config
    from mlcd.data.url_lists import Chunk

_BATCH = 1 << 16


class Part(NamedTuple):
    """Rows `start` … `stop` − 1 of a list or table."""

    path: str
    start: int
    stop: int


class Table:
    """Rows of parts, one after another; `key` is the column of names. Raises :class:`UserError`."""

    def __init__(self, parts: Sequence[Part], key: str) -> None:
        self._parts = list(parts)
        self._key = key

    def names(self, key: str) -> Iterator[tuple[int, pa.Array]]:
        """Iterate over first row and names (binaries, no blanks around them), in order.

        Raises :class:`UserError` for a column of anything but texts.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        first = 0
        for part in self._parts:
            for column in _read(part, key):
                try:
                    text = column.cast(pa.large_binary()).cast(pa.large_string(), safe=False)
                except pa.ArrowNotImplementedError:
                    raise UserError(
                        f"{part.path}: column {key!r} holds {column.type}, but names of images are "
                        "texts; give a column of texts as the key"
                    ) from None
                yield first, pc.ascii_trim_whitespace(text).cast(pa.large_binary())
                first += len(column)

    def path_of(self, row: int) -> str:
        """Return the file that holds a row."""
        for part in self._parts:
            row -= part.stop - part.start
            if row < 0:
                return part.path
        raise IndexError(row)

    def take(self, name: str, ids: np.ndarray) -> pa.Array:
        """Return the values of rows `ids` (int64 [m], −1 for none) of a column; null for none."""
        import pyarrow as pa

        order = np.argsort(ids, kind="stable")
        order = order[np.searchsorted(ids[order], 0) :]
        wanted = ids[order]
        found, first = [], 0
        paths: dict[pa.DataType, str] = {}
        for part in self._parts:
            for column in _read(part, name):
                low, high = np.searchsorted(wanted, [first, first + len(column)])
                if low < high:
                    found.append(column.take(pa.array(wanted[low:high] - first)))
                    paths.setdefault(column.type, part.path)
                first += len(column)
        if not found:
            return pa.nulls(len(ids))
        values = pa.chunked_array(_of_one_type(name, found, paths)).combine_chunks()
        if isinstance(values, pa.ChunkedArray):
            values = pa.concat_arrays(values.chunks)
        place = np.full(len(ids), -1, np.int64)
        place[order] = np.arange(len(order))
        return values.take(pa.array(place, mask=place < 0))


def _of_one_type(name: str, found: list[pa.Array], paths: dict[pa.DataType, str]) -> list[pa.Array]:
    """Return pieces of a column as one type: numbers of several as float64, nothing as any.

    `paths`: type → a file that has it. Raises :class:`UserError` for types that do not go together.
    """
    import pyarrow as pa

    def is_number(kind: pa.DataType) -> bool:
        of = pa.types
        return bool(of.is_integer(kind) or of.is_floating(kind) or of.is_decimal(kind))

    kinds = list(dict.fromkeys(one.type for one in found if one.null_count < len(one)))
    kinds = kinds or [found[0].type]
    if len(kinds) > 1 and not all(map(is_number, kinds)):
        other = next(kind for kind in kinds if kind != kinds[0] and not
                     (is_number(kind) and is_number(kinds[0])))  # fmt: skip
        raise UserError(
            f"{paths[kinds[0]]}: column {name!r} is {kinds[0]}, and {other} in {paths[other]}; "
            "write it as one type in all"
        )
    kind = pa.float64() if len(kinds) > 1 else kinds[0]
    return [
        pa.nulls(len(one), kind) if one.null_count == len(one) else one.cast(kind, safe=False)
        for one in found
    ]


def _read(part: Part, name: str) -> Iterator[pa.Array]:
    """Iterate over a column of a part, in blocks; texts come as binaries of UTF-8."""
    kind = list_format(part.path)
    if kind == "parquet":
        yield from _of_parquet(part, name)
        return
    import pyarrow as pa

    base = kind.removesuffix(".gz")
    names = ["url"] if base == "txt" else text_lists.header(part.path, base)
    at = 0 if base == "txt" else names.index(name)
    block: list[bytes | None] = []
    for record in text_lists.rows_of(part.path, base, part.start, part.stop):
        block.append(record[at].encode("latin-1") if at < len(record) else None)
        if len(block) == _BATCH:
            yield pa.array(block, pa.large_binary())
            block = []
    if block:
        yield pa.array(block, pa.large_binary())


def _of_parquet(part: Part, name: str) -> Iterator[pa.Array]:
    import pyarrow as pa

    file = open_parquet(part.path, buffer_size=1 << 20)
    groups: list[int] = []
    at, end = 0, 0
    for index in range(file.metadata.num_row_groups):
        begin, end = end, end + file.metadata.row_group(index).num_rows
        if begin < part.stop and part.start < end:
            at = begin if not groups else at
            groups.append(index)
    try:
        for batch in file.iter_batches(_BATCH, row_groups=groups, columns=[name]):
            low, high = max(part.start - at, 0), min(part.stop - at, len(batch))
            at += len(batch)
            if low >= high:
                continue
            column = batch.column(0).slice(low, high - low)
            if pa.types.is_dictionary(column.type):
                column = column.dictionary_decode()
            # Texts by way of bytes: parquet does not check that its strings are UTF-8.
            yield column.cast(pa.large_binary()) if is_text(column.type) else column
    except (pa.ArrowException, OSError) as error:
        raise text_lists.damaged(part.path, error) from None


def tables(entries: Sequence[str]) -> list[str]:
    """Return the files that `curate.columns` names. Raises :class:`UserError`."""
    try:
        return expand_lists(list(entries))
    except UserError as error:
        raise UserError(f"curate.columns: {str(error).partition(';')[0]}; give tables") from None


def box_tables(entries: Sequence[str]) -> list[str]:
    """Return the files that `regions.tables` names. Raises :class:`UserError`."""
    try:
        return expand_lists(list(entries))
    except UserError as error:
        raise UserError(f"regions.tables: {str(error).partition(';')[0]}; give tables") from None


def check_boxes(config: Config, chunks: Mapping[str, Chunk]) -> None:
    """Raise :class:`UserError` if the column that `regions.column` names is not there."""
    section = config.regions
    if section.column is None:
        return
    if section.tables is not None:
        for path in box_tables(section.tables):
            _require(path, [section.key, section.column], "regions.tables")
        return
    if any(chunk.identity for chunk in chunks.values()):
        raise UserError(
            "regions.column: images on disk have no columns; give it in tables as regions.tables, "
            "with regions.key"
        )
    for path in dict.fromkeys(chunk.list for chunk in chunks.values()):
        _require(path, [section.column], "regions.column")


def check(config: Config, chunks: Mapping[str, Chunk]) -> None:
    """Raise :class:`UserError` if a column that `curate.where` names is not there."""
    section = config.curate
    if not (section.enabled and section.where):
        return
    wanted = dict.fromkeys(condition.column for condition in section.conditions())
    if section.columns is not None:
        for path in tables(section.columns):
            _require(path, [section.key, *wanted], "curate.columns")
        return
    if any(chunk.identity for chunk in chunks.values()):
        raise UserError(
            "curate.where: images on disk have no columns; give them as tables in curate.columns, "
            "with curate.key"
        )
    for path in dict.fromkeys(chunk.list for chunk in chunks.values()):
        _require(path, list(wanted), "curate.where")


def _require(path: str, names: Sequence[str], key: str) -> None:
    """Raise :class:`UserError` if a table lacks one of these columns."""
    kind = list_format(path)
    if not Path(path).is_file():
        count_rows(path)
    if kind == "parquet":
        found = open_parquet(path).schema_arrow.names
    else:
        base = kind.removesuffix(".gz")
        found = [] if base == "txt" else text_lists.header(path, base)
    for name in names:
        if found.count(name) != 1:
            told = ", ".join(map(repr, found[:30])) or "none"
            raise UserError(
                f"{key}: {path} has {found.count(name) or 'no'} column {name!r}; its columns are "
                f"{told}; correct the name"
            )
