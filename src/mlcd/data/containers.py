"""Files that hold many images: webdataset tars, zips and parquets, looked into without unpacking.

Everything in them is a stranger's. Names of members are never used as paths, texts are read up to a
limit, and what cannot be an image's bytes is an entry with a reason.
"""

from __future__ import annotations

import json
import os
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcd.data.members import IMAGES, TEXTS, TarNames, ending_of, is_hidden
from mlcd.data.url_lists import open_parquet
from mlcd.utils.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa

#: Endings of files that hold images.
ENDINGS = frozenset({"tar", "zip", "parquet"})
#: Bytes of a caption's file that are read; more is no caption.
LONGEST_TEXT = 1 << 20
_LOCAL_HEADER = struct.Struct("<4s22xHH")
_ENCRYPTED = 1
#: Rows of a parquet that are decoded at once, and bytes that are read at once: images lie in them.
_ROWS, _BUFFER = 32, 1 << 20


@dataclass(frozen=True)
class Entry:
    """An image in a file: its name there and where its bytes are.

    Of a parquet `offset` is the row, and size and packed are 0; `reason` says why there are none.
    """

    name: str
    offset: int
    size: int = 0
    packed: int = 0
    caption: str = ""
    reason: str = ""


def caption_of(texts: dict[str, bytes], field: str | None) -> str:
    """Return the caption in what stands beside an image, ending → content: .txt, else .json's."""
    if "txt" in texts:
        return texts["txt"].decode("utf-8", "replace").strip()
    try:
        found = json.loads(texts["json"]).get(field) if "json" in texts and field else None
    except (ValueError, AttributeError, RecursionError):
        return ""
    return _text(found)


def _text(value: Any) -> str:
    """Return a caption; of several the first, and none of what is no text."""
    if isinstance(value, (list, tuple)):
        value = value[0] if value else ""
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    if not isinstance(value, str):
        return ""
    # JSON can hold halves of characters, which no file of ours can.
    return value.encode("utf-8", "replace").decode().strip()


def tar_entries(path: Path, field: str | None, *, captions: bool = True) -> list[Entry]:
    """Return the images of a webdataset tar in its order (:class:`~mlcd.data.members.TarNames`).

    Raises :class:`UserError` if the tar is damaged, compressed, or does not say which of several
    images belongs to a sample.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            members = [member for member in tar if member.isfile()]
            names = TarNames(path, (member.name for member in members))
            texts: dict[str, dict[str, bytes]] = {}
            if captions:
                for member in members:
                    said = names.text(member.name)
                    if said is not None and member.size <= LONGEST_TEXT:
                        handle = tar.extractfile(member)
                        content = handle.read() if handle else b""
                        texts.setdefault(said[0], {})[said[1]] = content
    except (tarfile.TarError, OSError, EOFError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: not a whole tar ({error}); {_tar_fix(path)}") from None
    size = path.stat().st_size
    found = []
    for member in members:
        if (key := names.images.get(member.name)) is None:
            continue
        if not member.issparse() and member.offset_data + member.size > size:
            raise UserError(f"{path}: not a whole tar (cut off at its end); fetch it again")
        found.append(
            Entry(
                member.name,
                member.offset_data,
                member.size,
                caption=caption_of(texts.get(key, {}), field),
                reason="unreadable" if member.issparse() else "",
            )
        )
    if captions:
        names.report()
    return found


def _tar_fix(path: Path) -> str:
    with path.open("rb") as handle:
        packed = handle.read(6).startswith((b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"\x28\xb5\x2f\xfd"))
    return "it is compressed: unpack it to a plain tar" if packed else "fetch it again"


def zip_entries(path: Path, field: str | None, *, captions: bool = True) -> list[Entry]:
    """Return the images of a zip, in the order of its directory.

    Members count as files of a folder do: by their endings, without hidden ones. Raises
    :class:`UserError` if the zip is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as handle:
            members = [item for item in archive.infolist() if not item.is_dir()]
            members = [item for item in members if not is_hidden(item.filename)]
            images = [item for item in members if ending_of(item.filename) in IMAGES]
            texts: dict[str, dict[str, bytes]] = {}
            stems = {item.filename.rpartition(".")[0] for item in images} if captions else set()
            for item in members:
                stem, ending = item.filename.rpartition(".")[0], ending_of(item.filename)
                if ending in TEXTS and stem in stems:
                    texts.setdefault(stem, {})[ending] = _member_text(archive, item)
            size = path.stat().st_size
            if not captions:  # they are counted only
                return [Entry(item.filename, 0) for item in images]

            def entry(item: zipfile.ZipInfo) -> Entry:
                offset, packed, reason = _place(handle.fileno(), item, size)
                name = item.filename
                said = caption_of(texts.get(name.rpartition(".")[0], {}), field)
                return Entry(_printable(name), offset, item.file_size, packed, said, reason)

            return [entry(item) for item in images]
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, struct.error) as error:
        raise UserError(f"{path}: not a whole zip ({error}); fetch it again") from None


def _printable(name: str) -> str:
    return name.encode("utf-8", "backslashreplace").decode()


def _place(handle: int, item: zipfile.ZipInfo, size: int) -> tuple[int, int, str]:
    """Return the offset of a member's bytes, how many they are if deflated, and what is wrong."""
    if item.flag_bits & _ENCRYPTED:
        return 0, 0, "encrypted"
    if item.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
        return 0, 0, "unreadable"
    head = os.pread(handle, _LOCAL_HEADER.size, item.header_offset)
    if len(head) < _LOCAL_HEADER.size or not head.startswith(b"PK\x03\x04"):
        return 0, 0, "damaged"
    _, name, extra = _LOCAL_HEADER.unpack(head)
    offset = item.header_offset + _LOCAL_HEADER.size + name + extra
    deflated = item.compress_type == zipfile.ZIP_DEFLATED
    length = item.compress_size if deflated else item.file_size
    if offset + length > size or (deflated and not length):
        return 0, 0, "damaged"
    return offset, length if deflated else 0, ""


def _member_text(archive: zipfile.ZipFile, item: zipfile.ZipInfo) -> bytes:
    try:
        with archive.open(item) as handle:
            text = handle.read(LONGEST_TEXT + 1)
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, EOFError, zlib.error):
        return b""
    return text if len(text) <= LONGEST_TEXT else b""


def image_column(schema: pa.Schema, named: str) -> str | None:
    """Return the column that holds images, bytes or Hugging Face's struct of bytes and path.

    `named` if it does, else the only one that is such a struct; None if there is none.
    """
    import pyarrow as pa

    def is_binary(kind: pa.DataType) -> bool:
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    def is_struct(kind: pa.DataType) -> bool:
        if not pa.types.is_struct(kind) or kind.get_field_index("bytes") < 0:
            return False
        return is_binary(kind.field("bytes").type)

    if schema.names.count(named) == 1:
        kind = schema.field(named).type
        if is_binary(kind) or is_struct(kind):
            return named
    structs = [field.name for field in schema if is_struct(field.type)]
    return structs[0] if len(structs) == 1 and schema.names.count(structs[0]) == 1 else None


def parquet_entries(
    path: Path, named: str, field: str | None, start: int, stop: int
) -> list[Entry]:
    """Return rows [start, stop) of a parquet with images, each named by the column of images.

    No image is read.
    """
    captions = [""] * (stop - start)
    schema = open_parquet(path).schema_arrow
    column = image_column(schema, named)
    if column is None:
        raise UserError(f"{path}: has no column of images any more; start the run again")
    if field is not None and schema.names.count(field) == 1:
        captions = [_text(value) for value in column_values(path, field, start, stop)]
    return [Entry(column, row, caption=captions[row - start]) for row in range(start, stop)]


def _plain(column: pa.Array) -> pa.Array:
    """Return text as bytes: parquet does not check that its strings are UTF-8."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    text = pa.types.is_string(column.type) or pa.types.is_large_string(column.type)
    return column.cast(pa.large_binary()) if text else column


def column_values(path: Path, column: str, start: int, stop: int) -> Iterator[Any]:
    """Iterate over rows [start, stop) of a column of a parquet; only their row groups are read.

    Memory: a few dozen rows, however large the row groups are. Raises :class:`UserError` if the
    file is damaged.
    """
    file = open_parquet(path, buffer_size=_BUFFER)
    groups: list[int] = []
    at = end = 0
    for index in range(file.metadata.num_row_groups):
        begin, end = end, end + file.metadata.row_group(index).num_rows
        if begin < stop and start < end:
            at = begin if not groups else at
            groups.append(index)
    try:
        for batch in file.iter_batches(_ROWS, row_groups=groups, columns=[column]):
            low, high = max(start - at, 0), min(stop - at, len(batch))
            at += len(batch)
            if low < high:
                yield from _plain(batch.slice(low, high - low).column(0)).to_pylist()
    except (OSError, ValueError) as error:  # pyarrow's own errors are kinds of these
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: damaged ({reason}); fetch it again") from None
