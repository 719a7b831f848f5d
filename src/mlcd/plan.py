"""Names of chunks and the rows of URL lists, cheap enough to ask whenever the Snakefile is read.

The number of chunks follows from the lists' row counts, so that the graph is known before any
work starts. Of a parquet file only the footer is read. Text lists are read through, so at
hundreds of millions of rows take parquet.
"""

from __future__ import annotations

import csv
import difflib
import glob
import gzip
import re
import zlib
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, NamedTuple

from mlcd.errors import UserError

FORMATS = ("parquet", "csv", "tsv", "txt", "csv.gz", "tsv.gz", "txt.gz")
#: What reading a damaged or vanished text list raises.
READ_ERRORS = (OSError, EOFError, zlib.error)
_BLOCK = 1 << 20
# Chunk names have five digits; a graph of so many jobs would not be usable anyway.
_MOST_CHUNKS = 100_000
# Chunk names become file names, wildcards and words of shell commands.
_SAFE_STEM = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_+=@-]*")


class Chunk(NamedTuple):
    """A chunk's list, its place in the list, and its rows (fewer in a list's last chunk)."""

    list: str
    index: int
    rows: int


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

    Rows are records of a parquet or csv file, and lines of a tsv or txt file; the header is none.
    Raises :class:`UserError`, which names the file, if it is missing, damaged or of unknown kind.
    """
    kind = list_format(path)
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; check the config key metadata")
    if kind == "parquet":
        return open_parquet(path).metadata.num_rows
    with open_text(path) as handle:
        if kind.startswith("csv") and _holds_quote(handle):
            handle.seek(0)
            rows = sum(1 for _ in csv_records(path, handle))
        else:
            handle.seek(0)
            rows = _count_lines(handle)
    return rows if kind.startswith("txt") else max(0, rows - 1)


def expand_lists(metadata: list[str]) -> list[str]:
    """Return the lists that `metadata` names, patterns such as lists/*.parquet in sorted order.

    Raises :class:`UserError` if a pattern matches nothing.
    """
    found: list[str] = []
    for name in metadata:
        # Path.glob takes no absolute pattern.
        matches = sorted(glob.glob(name)) if glob.has_magic(name) else [name]  # noqa: PTH207
        if not matches:
            raise UserError(f"{name}: no file is called so; check the config key metadata")
        found += matches
    return found


def plan(
    metadata: list[str], chunk_rows: int, columns: dict[str, str | None] | None = None
) -> dict[str, Chunk]:
    """Return chunk name → :class:`Chunk`, in the order of the lists.

    `columns` (config key → name, or None) are looked for in the footers of parquet lists.

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
        if chunk_count(rows, chunk_rows) > _MOST_CHUNKS:
            raise UserError(
                f"{path}: {rows} rows make more than {_MOST_CHUNKS} chunks of {chunk_rows}; "
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
    """Return the number of rows of a list, a parquet one's columns checked."""
    if list_format(path) != "parquet" or not Path(path).is_file():
        return count_rows(path)
    footer = open_parquet(path)
    check_columns(path, columns, footer.schema_arrow.names)
    return footer.metadata.num_rows


def check_columns(path: str | Path, columns: dict[str, str | None], found: list[str]) -> None:
    """Raise :class:`UserError` for a column that the list lacks; it names those found."""
    for key, name in columns.items():
        if name is None or name in found:
            continue
        lower = {column.lower(): column for column in reversed(found)}
        near = difflib.get_close_matches(name.lower(), list(lower), n=1)
        hint = f"did you mean {lower[near[0]]!r}? " if near else ""
        null = "" if key == "url_column" else " (null if the list has none)"
        shown = ", ".join(map(repr, found[:30])) or "none"
        raise UserError(
            f"{path}: no column {name!r}; its columns are {shown}; {hint}"
            f"set prepare.{key} to the right one{null}"
        )


def chunk_count(rows: int, chunk_rows: int) -> int:
    """Return how many chunks of `chunk_rows` hold `rows` rows; the last may be shorter."""
    return -(-rows // chunk_rows)


def open_parquet(path: str | Path):
    """Open a parquet file (pyarrow.parquet.ParquetFile). Raises :class:`UserError` if damaged."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(
            f"{path}: not a whole parquet file ({_one_line(error)}); fetch it again"
        ) from None


def open_text(path: str | Path) -> IO[bytes]:
    """Open a text list as bytes, decompressed if its name ends in .gz."""
    return gzip.open(path, "rb") if list_format(path).endswith(".gz") else Path(path).open("rb")


def csv_records(path: str | Path, handle: Iterable[bytes]) -> Iterator[list[str]]:
    """Iterate over the records of a csv file, header included.

    Fields are latin-1 views of their bytes, so that no byte is lost before the caption's encoding
    is judged. Raises :class:`UserError` for a quote that is never closed.
    """
    csv.field_size_limit(_BLOCK << 4)
    lines = (line.rstrip(b"\r\n").replace(b"\r", b" ").decode("latin-1") + "\n" for line in handle)
    reader = csv.reader(lines)
    try:
        yield from reader
    except csv.Error as error:
        raise UserError(
            f"{path}: line {reader.line_num}: not readable as csv ({error}); is a quote before "
            "it never closed?"
        ) from None
    except READ_ERRORS as error:
        raise damaged(path, error) from None


def damaged(path: str | Path, error: Exception) -> UserError:
    """Return the message for a compressed list that cannot be read to its end."""
    return UserError(f"{path}: not readable to its end ({_one_line(error)}); fetch it again")


def _holds_quote(handle: IO[bytes]) -> bool:
    return any(b'"' in block for block in _blocks(handle))


def _count_lines(handle: IO[bytes]) -> int:
    """Count lines; a last one without a newline counts."""
    lines, last = 0, b"\n"
    for block in _blocks(handle):
        lines += block.count(b"\n")
        last = block[-1:]
    return lines + (last != b"\n")


def _blocks(handle: IO[bytes]) -> Iterator[bytes]:
    try:
        while block := handle.read(_BLOCK):
            yield block
    except READ_ERRORS as error:
        raise damaged(getattr(handle, "name", "list"), error) from None


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
