"""URL lists as text: csv, tsv and txt, plain or gzipped, as programs write them.

Counting (when the Snakefile is read) and reading (stage prepare) take the same records, so that
they agree about every row. What is understood: UTF-8 with a byte order mark, UTF-16 and UTF-32 with
one; lines that end in LF, CRLF or CR; empty lines, which are no rows; csv with quotes (RFC 4180);
tsv with quotes, as pandas writes it, where the whole file obeys them, else a quote in a tsv is a
quote and each line a row.
"""

from __future__ import annotations

import codecs
import csv
import gzip
import io
import re
import zlib
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import IO

from mlcd.data.list_counts import counted
from mlcd.utils.errors import UserError

#: What reading a damaged or vanished text list raises.
READ_ERRORS = (OSError, EOFError, zlib.error)
#: Bytes in which the end of the first line and the encoding are looked for.
_HEAD = 1 << 20
#: The longest field, in characters.
_FIELD = 1 << 24
#: Longer marks first: UTF-32's begins with UTF-16's.
_MARKS = (
    (codecs.BOM_UTF8, ""), (codecs.BOM_UTF32_LE, "utf-32"), (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"),
)  # fmt: skip
#: No row. A search for two bytes at once is faster than one for each.
_EMPTY_LINE = re.compile(rb"\n[\r\n]")
#: Appended to what csv reads: if it is not a record of its own, a quote was still open.
_END = "\x00end\x00"


def count_records(path: str | Path, kind: str) -> int:
    """Return the number of records of a list of `kind` (csv, tsv or txt), a header among them.

    Raises :class:`UserError` as :func:`records`.
    """
    count = None if kind == "txt" else _quoted_records(path, kind)
    if count is not None:
        return count
    try:
        return counted(path, "lines", lambda: _line_count(path)) or 0
    except OSError as error:
        raise damaged(path, error) from None


def _line_count(path: str | Path) -> int:
    count = _plain_lines(path)
    return sum(1 for _ in _lines(path)) if count is None else count


def records(path: str | Path, kind: str) -> Iterator[list[str]]:
    """Iterate over the records of a list, a header included.

    Fields are latin-1 views of UTF-8 (or whatever the file holds), so that no byte is lost before
    the caption's encoding is judged. Raises :class:`UserError` for a file that cannot be read to
    its end, a quote that is never closed, and UTF-16 that does not say so.
    """
    if kind == "txt":
        return ([line] for line in _lines(path))
    delimiter = "," if kind == "csv" else "\t"
    if _quoted_records(path, kind) is not None:
        return _quoted(path, delimiter)
    return (line.split(delimiter) for line in _lines(path))


def header(path: str | Path, kind: str) -> list[str]:
    """Return the names of a csv or tsv list's columns; none if it is empty. Raises UserError."""
    return [utf8(name) for name in next(records(path, kind), [])]


def has_open_quotes(path: str | Path, kind: str) -> bool:
    """True for a tsv with fields that begin with a quote and are taken as they are."""
    return kind == "tsv" and _quoted_records(path, kind) is None and _begins_quotes(path)


def utf8(latin: str) -> str:
    """Return the text of a latin-1 view of UTF-8."""
    return latin.encode("latin-1").decode("utf-8", "replace")


def damaged(path: str | Path, error: Exception) -> UserError:
    """Return the message for a list that cannot be read to its end."""
    return UserError(f"{path}: not readable to its end ({one_line(error)}); fetch it again")


def one_line(error: Exception) -> str:
    """Return an error's message without its line breaks."""
    return " ".join(str(error).split())


def _open(path: str | Path) -> IO[bytes]:
    packed = str(path).lower().endswith(".gz")
    return gzip.open(path, "rb") if packed else Path(path).open("rb")  # type: ignore[return-value]


def _blocks(path: str | Path) -> Iterator[bytes]:
    try:
        with _open(path) as handle:
            while block := handle.read(_HEAD):
                yield block
    except READ_ERRORS as error:
        raise damaged(path, error) from None


def _plain_lines(path: str | Path) -> int | None:
    """Count lines ten times faster than one by one; None for a file that is not so simple."""
    lines, last = 0, b"\n"
    for number, block in enumerate(_blocks(path)):
        if number == 0 and (
            any(encoding and block.startswith(mark) for mark, encoding in _MARKS)
            or b"\0" in block[:2]
            or _newline(block, "latin-1") == "\r"
        ):
            return None
        if _EMPTY_LINE.search(block) or _EMPTY_LINE.match(last + block[:1]):
            return None
        lines += block.count(b"\n")
        last = block[-1:]
    return lines + (last != b"\n")


def _lines(path: str | Path, *, empty: bool = False) -> Iterator[str]:
    """Iterate over lines without their ends, as latin-1 views; with `empty` also those that are."""
    try:
        with _open(path) as handle:
            head = handle.read(_HEAD)
            handle.seek(0)
            mark, encoding = next(
                ((mark, encoding) for mark, encoding in _MARKS if head.startswith(mark)), (b"", "")
            )
            if not encoding:
                handle.seek(len(mark))
                if b"\0" in head[:2]:
                    raise UserError(f"{path}: holds zero bytes, as UTF-16 does; save it as UTF-8")
            text = io.TextIOWrapper(
                handle, encoding or "latin-1", newline=_newline(head, encoding or "latin-1")
            )
            for line in text:
                line = line.rstrip("\r\n")
                if line or empty:
                    # A lone surrogate cannot be written as UTF-8.
                    yield line.encode("utf-8", "replace").decode("latin-1") if encoding else line
    except UnicodeError as error:
        raise UserError(
            f"{path}: not the UTF-16 that its first bytes say ({one_line(error)}); save it as UTF-8"
        ) from None
    except READ_ERRORS as error:
        raise damaged(path, error) from None


def _newline(head: bytes, encoding: str) -> str:
    r"""Return what ends the lines: "\r" where the first line ends so, else "\n"."""
    text = head.decode(encoding, "ignore")
    quoted = False
    for place, character in enumerate(text):
        if character == '"':
            quoted = not quoted
        elif character == "\r" and not quoted:
            # Some programs write \r\r\n.
            return "\n" if text[place:].lstrip("\r")[:1] == "\n" else "\r"
        elif character == "\n" and not quoted:
            return "\n"
    return "\n"


def _quoted(path: str | Path, delimiter: str) -> Iterator[list[str]]:
    """Iterate over records with quotes, empty lines left out."""
    reader = csv.reader(_with_end(_lines(path, empty=True)), delimiter=delimiter)
    # The limit is the process's; another's may be lower.
    csv.field_size_limit(_FIELD)
    begins = 1
    try:
        for record in reader:
            if record == [_END]:
                return
            if record and record[-1].endswith(_END):
                raise csv.Error("a quote is open at the end of the file")
            begins = reader.line_num + 1
            if record:
                yield record
    except csv.Error as error:
        raise UserError(
            f"{path}: line {begins}: not readable as "
            f"{'csv' if delimiter == ',' else 'tsv'} ({error}); is a quote there never closed?"
        ) from None


def _with_end(lines: Iterable[str]) -> Iterator[str]:
    for line in lines:
        yield line.replace("\r", " ") + "\n"
    yield _END


def _quoted_records(path: str | Path, kind: str) -> int | None:
    """Return the number of records where quotes mean something, else None.

    They do in a csv that holds any, and in a tsv that obeys them to its end. A file is read once
    for as long as it stays as it is.
    """
    try:
        return counted(path, f"quoted {kind}", lambda: _read_through(path, kind))
    except OSError as error:
        raise damaged(path, error) from None


def _read_through(path: str | Path, kind: str) -> int | None:
    """Count for :func:`_quoted_records`."""
    if not any(b'"' in block for block in _blocks(path)):
        return None
    if kind == "csv":
        return sum(1 for _ in _quoted(path, ","))
    return _obedient_records(path) if _begins_quotes(path) else None


def _begins_quotes(path: str | Path) -> bool:
    """True if a field of a tsv begins with a quote."""
    return any(line[0] == '"' or '\t"' in line for line in _lines(path))


def _obedient_records(path: str | Path) -> int | None:
    """Return the number of records of a tsv that reads as quoted, else None.

    All quotes must close and all records have one width. A quote that only opens a caption swallows
    lines up to the next quote: such a field holds whole rows, with as many tabs as a row has.
    """
    csv.field_size_limit(_FIELD)
    reader = csv.reader(_with_end(_lines(path, empty=True)), delimiter="\t", strict=True)
    records = width = last = 0
    try:
        for record in reader:
            if record == [_END]:
                return records
            width = width or len(record)
            if record and len(record) != width:
                return None
            if reader.line_num > last + 1 and any(
                "\n" in field and max(line.count("\t") for line in field.split("\n")) >= width - 1
                for field in record
            ):
                return None
            last = reader.line_num
            records += bool(record)
    except csv.Error:
        return None
    return None


def rows_of(path: str | Path, kind: str, start: int, stop: int) -> Iterator[list[str]]:
    """Iterate over rows [start, stop) of a list, its header not counted."""
    first = 0 if kind == "txt" else 1
    return islice(records(path, kind), start + first, stop + first)
