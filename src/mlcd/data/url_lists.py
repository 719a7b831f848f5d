"""Names of chunks and the rows of URL lists, cheap enough to ask whenever the Snakefile is read.

The number of chunks follows from the lists' row counts, so that the graph is known before any
work starts. Of a parquet file only the footer is read. Text lists are read through, so at
hundreds of millions of rows take parquet.
"""

from __future__ import annotations

import difflib
import glob
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from mlcd.data import text_lists
from mlcd.utils.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

FORMATS = ("parquet", "csv", "tsv", "txt", "csv.gz", "tsv.gz", "txt.gz")
# Chunk names have five digits; a graph of so many jobs would not be usable anyway.
MOST_CHUNKS = 100_000
_URL = re.compile(r"\s*https?://", re.IGNORECASE)
#: What may stand between columns in place of what the file's name says: the two's names.
_MARKS = {"\t": ("commas", "tabs"), ";": ("commas", "semicolons"), ",": ("tabs", "commas")}
# Chunk names become file names, wildcards and words of shell commands.
_SAFE_STEM = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_+=@-]*")


class Chunk(NamedTuple):
    """A chunk's list, its place in the list, and its rows (fewer in a list's last chunk).

    Of images on disk `list` is their listing, and `identity` a hash of what the chunk holds.
    """

    list: str
    part: int
    rows: int
    identity: str = ""


def list_format(path: str | Path) -> str:
    """Return the format of a URL list by its name, one of :data:`FORMATS`. Raises UserError."""
    name = Path(path).name.lower()
    for ending in FORMATS:
        if name.endswith(f".{ending}"):
            return ending
    raise UserError(
        f"{path}: not a known kind of URL list; name it to end in one of "
        + ", ".join(f".{ending}" for ending in FORMATS)
    )


def chunk_name(path: str | Path, index: int) -> str:
    """Return the name of chunk `index` of a list: `{stem}-{index:05d}`. Raises UserError."""
    stem = Path(path).name.split(".")[0]
    if not _SAFE_STEM.fullmatch(stem):
        raise UserError(
            f"{path}: chunks are named after the list, and {stem!r} holds other characters than "
            "letters, digits and _ + = @ -; rename the file"
        )
    return f"{stem}-{index:05d}"


def count_rows(path: str | Path) -> int:
    """Return the number of rows of a URL list, rejected ones included.

    Rows are records of a parquet, csv or tsv file (:mod:`mlcd.data.text_lists`), and lines of a txt
    file; the header and empty lines are none. Raises :class:`UserError`, which names the file, if
    it is missing, damaged or of unknown kind.
    """
    kind = list_format(path)
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; check the config key metadata")
    if kind == "parquet":
        rows: int = open_parquet(path).metadata.num_rows
        return rows
    base = kind.removesuffix(".gz")
    rows = text_lists.count_records(path, base)
    return rows if base == "txt" else max(0, rows - 1)


def expand_lists(metadata: list[str]) -> list[str]:
    """Return the lists that `metadata` names, patterns such as lists/*.parquet in sorted order.

    Raises :class:`UserError` if a pattern matches nothing.
    """
    found: list[str] = []
    for name in metadata:
        # A folder may be called "lists [2024]". Path.glob takes no absolute pattern.
        is_pattern = glob.has_magic(name) and not Path(name).exists()
        matches = sorted(glob.glob(name)) if is_pattern else [name]  # noqa: PTH207
        if not matches:
            raise UserError(f"{name}: no file is called so; check the config key metadata")
        found += matches
    return found


def plan(
    metadata: list[str], chunk_rows: int, columns: dict[str, str | None] | None = None
) -> dict[str, Chunk]:
    """Return chunk name → :class:`Chunk`, in the order of the lists.

    `columns` (config key → name, or None) are looked for in footers and headers.

    `metadata` holds paths and patterns, see :func:`expand_lists`. Raises :class:`UserError` if a
    list is missing, empty, damaged or of unknown kind, or if two lists would give their chunks the
    same names.
    """
    metadata = expand_lists(metadata)
    # Opening is waiting where the lists lie on a network disk, so several are opened at a time.
    with ThreadPoolExecutor(max_workers=8) as pool:
        counts = list(pool.map(lambda path: _look_at(path, columns or {}), metadata))
    chunks: dict[str, Chunk] = {}
    for path, rows in zip(metadata, counts, strict=True):
        if rows == 0:
            raise UserError(f"{path}: this list has no rows; take it out of the key metadata")
        if chunk_count(rows, chunk_rows) > MOST_CHUNKS:
            raise UserError(
                f"{path}: {rows} rows make more than {MOST_CHUNKS} chunks of {chunk_rows}; "
                "raise prepare.chunk_rows"
            )
        for index in range(chunk_count(rows, chunk_rows)):
            name = chunk_name(path, index)
            if name in chunks:
                raise UserError(
                    f"{path}: its chunks would be named like those of {chunks[name].list}; "
                    "rename one of the two lists"
                )
            chunks[name] = Chunk(path, index, min(chunk_rows, rows - index * chunk_rows))
    return chunks


def _look_at(path: str, columns: dict[str, str | None]) -> int:
    """Return the number of rows of a list, its columns checked."""
    kind = list_format(path)
    if not Path(path).is_file():
        return count_rows(path)
    if kind == "parquet":
        footer = open_parquet(path)
        check_parquet(path, columns, footer.schema_arrow)
        found: int = footer.metadata.num_rows
        return found
    rows = count_rows(path)
    if rows and not kind.startswith("txt"):
        check_columns(path, columns, text_lists.header(path, kind.removesuffix(".gz")))
    return rows


def check_parquet(path: str | Path, columns: dict[str, str | None], schema: pa.Schema) -> None:
    """Raise :class:`UserError` as :func:`check_columns`, and for a column that is not of text.

    Refuses what img2dataset writes beside its tars: the images are there already.
    """
    tar = Path(path).with_suffix(".tar")
    if {"key", "status", "error_message"} <= set(schema.names) and tar.is_file():
        raise UserError(
            f"{path}: img2dataset's record of the images in {tar.name} beside it, no list to "
            f"fetch; to use these images, name {tar} or its folder; to fetch them "
            "again, copy the list to another folder"
        )
    check_columns(path, columns, schema.names)
    for key, name in columns.items():
        if name is not None and not is_text(schema.field(name).type):
            raise UserError(
                f"{path}: column {name!r} is of type {schema.field(name).type}, expected text; "
                f"write it as text, or set prepare.{key} to another column"
                + ("" if key == "url_column" else " or to null")
            )


def is_text(kind: pa.DataType) -> bool:
    """True for strings, binaries, dictionaries of them, and for a column of nulls alone."""
    import pyarrow.types as types

    if types.is_dictionary(kind):
        kind = kind.value_type
    tests = (
        types.is_string, types.is_large_string, types.is_string_view, types.is_binary,
        types.is_large_binary, types.is_binary_view, types.is_fixed_size_binary, types.is_null,
    )  # fmt: skip
    return any(test(kind) for test in tests)


def check_columns(path: str | Path, columns: dict[str, str | None], found: list[str]) -> None:
    """Raise :class:`UserError` for a column that the list lacks, or has twice; it names those
    found.
    """
    for key, name in columns.items():
        if name is None or found.count(name) == 1:
            continue
        if name in found:
            raise UserError(
                f"{path}: {found.count(name)} columns are called {name!r}; rename all but the one "
                f"that prepare.{key} means"
            )
        raise UserError(f"{path}: no column {name!r}; {_what_instead(path, key, name, found)}")


def _what_instead(path: str | Path, key: str, name: str, found: list[str]) -> str:
    """Return what the columns of a list are instead, and what to do."""
    if any(_URL.match(column) for column in found):
        return (
            "its first line is no header, it holds a URL; write the columns' names above it, "
            "or a txt list with a URL per line"
        )
    if len(found) == 1 and (other := next((mark for mark in _MARKS if mark in found[0]), None)):
        return (
            f"its first line has no {_MARKS[other][0]} but {_MARKS[other][1]}; columns are "
            "separated by commas in .csv and by tabs in .tsv: rename the file or write it so"
        )
    lower = {column.lower(): column for column in reversed(found)}
    near = difflib.get_close_matches(name.lower(), list(lower), n=1)
    hint = f"did you mean {lower[near[0]]!r}? " if near else ""
    null = "" if key == "url_column" else " (null if the list has none)"
    shown = ", ".join(map(repr, found[:30])) or "none"
    return f"its columns are {shown}; {hint}set prepare.{key} to the right one{null}"


def chunk_count(rows: int, chunk_rows: int) -> int:
    """Return how many chunks of `chunk_rows` hold `rows` rows; the last may be shorter."""
    return -(-rows // chunk_rows)


def open_parquet(path: str | Path, buffer_size: int = 0) -> pq.ParquetFile:
    """Open a parquet file (pyarrow.parquet.ParquetFile). Raises :class:`UserError` if damaged.

    With a `buffer_size`, columns are read by so many bytes, not whole.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path, buffer_size=buffer_size)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path}: not a whole parquet file ({text_lists.one_line(error)}); fetch it again"
        ) from None
