"""The list of a chunk: read in batches, strange bytes made harmless, URLs made requestable."""

from __future__ import annotations

import os
import string
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urlsplit

import pyarrow as pa
import pyarrow.parquet as pq

from mlcd.utils.errors import UserError
from mlcd.utils.files import sha256_file
from mlcd.utils.ownership import is_ours
from mlcd.utils.records import read_record

#: What `quote` leaves alone: everything printable in ASCII except the space.
_SAFE = string.digits + string.ascii_letters + string.punctuation


_COLUMNS = ("url", "caption", "sha256")
#: Rows that are read at a time.
_BLOCK = 65_536


class Batch(NamedTuple):
    """Consecutive rows: position of the first, and for each row its URL, caption and hash."""

    start: int
    urls: list[str]
    captions: list[str]
    hashes: list[str]


class UrlList:
    """A parquet file with a column `url`, and perhaps `caption` and `sha256` (hex).

    Attributes: `path`, `rows` (int), `digest` (hex SHA-256 of the file). A row is its position in
    the file. Raises :class:`UserError` if it is missing, not parquet, without rows or columns, or
    not what the stage prepare says in the JSON that it writes beside it.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"{path}: no such file; give the list of a chunk")
        self.digest = sha256_file(self.path)
        compare_with_prepare(self.path, self.digest)
        try:
            with pq.ParquetFile(self.path) as file:
                self.rows: int = file.metadata.num_rows
                schema = file.schema_arrow
        except (pa.ArrowException, OSError) as error:
            detail = str(error).splitlines()[0]
            raise UserError(f"{path}: not readable as parquet ({detail}); write it anew") from None
        if "url" not in schema.names:
            found = ", ".join(schema.names) or "none"
            raise UserError(
                f"{path}: no column url among its columns ({found}); rename the column of URLs, or "
                "let the stage prepare write the list"
            )
        self._columns = [name for name in _COLUMNS if name in schema.names]
        for name in self._columns:
            if schema.names.count(name) > 1:
                raise UserError(f"{path}: two columns are called {name}; rename one of them")
            kind = schema.field(name).type
            if pa.types.is_dictionary(kind):
                kind = kind.value_type
            if not _is_text(kind) and not (pa.types.is_null(kind) and name != "url"):
                raise UserError(f"{path}: column {name} holds {kind}; expected text")
        if self.rows == 0:
            raise UserError(f"{path}: holds no rows, nothing can be fetched; remove this list")

    def batches(self, size: int) -> Iterator[Batch]:
        """Iterate over all rows in order, `size` at a time (fewer in the last batch)."""
        pending: list[list[str]] = [[], [], []]
        start = 0
        for columns in self._columns_of_blocks():
            pending = [held + new for held, new in zip(pending, columns, strict=True)]
            cut = 0
            while len(pending[0]) - cut >= size:
                yield Batch(start, *(place[cut : cut + size] for place in pending))
                cut += size
                start += size
            pending = [place[cut:] for place in pending]
        if pending[0]:
            yield Batch(start, *pending)

    def _columns_of_blocks(self) -> Iterator[list[list[str]]]:
        try:
            with pq.ParquetFile(self.path) as file:
                for block in file.iter_batches(batch_size=_BLOCK, columns=self._columns):
                    yield [
                        _texts(block.column(name)) if name in self._columns else [""] * len(block)
                        for name in _COLUMNS
                    ]
        except (pa.ArrowException, OSError) as error:
            detail = str(error).splitlines()[0]
            raise UserError(f"{self.path}: damaged ({detail}); write it anew") from None


def compare_with_prepare(path: Path, digest: str) -> None:
    """Raise :class:`UserError` if the stage prepare wrote another list here."""
    beside = path.with_suffix(".json")
    # Anybody's list may lie beside a JSON of theirs.
    if beside.is_file() and is_ours(beside) and read_record(beside, "prepare")["table"] != digest:
        raise UserError(
            f"{path}: not the list that {beside.name} describes (damaged, or edited); remove both "
            "and rerun prepare"
        )


def _is_text(kind: pa.DataType) -> bool:
    return any(
        check(kind)
        for check in (
            pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view,
            pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view,
        )
    )  # fmt: skip


def _texts(column: pa.Array) -> list[str]:
    """Decode a column by hand: parquet does not check that its strings are UTF-8."""
    if pa.types.is_null(column.type):
        return [""] * len(column)
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    return [
        "" if value is None else value.decode("utf-8", "replace")
        for value in column.cast(pa.large_binary()).to_pylist()
    ]


def requestable(url: str) -> str | None:
    """Return `url` as it can stand in a request, or None if it is not http(s) with a host.

    Letters beyond ASCII and spaces, which lists from the web have and http clients refuse, are
    percent-encoded (IDNA in the host), as browsers do. None also with a user or password in it.
    """
    url = url.strip()
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
        if parts.scheme not in ("http", "https") or not host or "@" in parts.netloc:
            return None
        if not host.isascii():
            netloc = parts.netloc.lower().replace(host, host.encode("idna").decode())
            url = parts._replace(netloc=netloc).geturl()
    except (ValueError, UnicodeError):
        return None
    return quote(url, safe=_SAFE)


def has_credentials(url: str) -> bool:
    """True if a URL holds a user or a password."""
    try:
        return "@" in urlsplit(url.strip()).netloc
    except ValueError:
        return False


def without_credentials(url: str) -> str:
    """Return a URL with *** in the place of a user and password."""
    if not has_credentials(url):
        return url
    parts = urlsplit(url.strip())
    return parts._replace(netloc=f"***@{parts.netloc.rpartition('@')[2]}").geturl()
