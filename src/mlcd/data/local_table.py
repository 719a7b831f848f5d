"""The table of a chunk of images on disk, `urls/{chunk}.parquet`: where each image lies.

Light enough for the workflow. Stage prepare writes it, stage download reads it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from mlcd.data.containers import Entry
from mlcd.utils.errors import UserError
from mlcd.utils.files import sha256_file
from mlcd.utils.ownership import PARQUET_KEY

#: What the table's metadata says that it is.
LOCAL = "local images"
_ROOT = b"mlcd root"
_BLOCK = 1 << 16


class LocalImage(NamedTuple):
    """An image: `path` of its file below the root, of which `kind`; `member` in it, or "".

    `offset`, `size`, `packed` as in :class:`mlcd.data.pointers.Pointer`; of a parquet, `offset` is
    the row. `folder` is the name of the folder that it lies in: its class, where there are class
    folders. `reason` says why it is not to be read, or "".
    """

    path: bytes
    kind: str
    member: str
    offset: int
    size: int
    packed: int
    caption: str
    folder: str
    reason: str

    @property
    def place(self) -> str:
        """Where the image lies, for people: PATH, PATH#MEMBER of an archive, PATH#ROW."""
        path = self.path.decode("utf-8", "backslashreplace")
        if self.kind == "image":
            return path
        return f"{path}#{self.offset if self.kind == 'parquet' else self.member}"


def row_of(path: bytes, kind: str, entry: Entry) -> dict[str, Any]:
    """Return the row of an image of a listed file."""
    member = entry.name.encode("utf-8", "backslashreplace").decode()
    inside = os.fsdecode(path) if kind == "image" else entry.name if kind != "parquet" else ""
    folder = os.path.basename(os.path.dirname(inside))  # noqa: PTH119, PTH120
    return {
        "path": path, "kind": kind, "member": member, "offset": entry.offset, "size": entry.size,
        "packed": entry.packed, "caption": entry.caption,
        "folder": folder.encode("utf-8", "backslashreplace").decode(), "reason": entry.reason,
    }  # fmt: skip


def _schema(root: str | None = None) -> Any:
    import pyarrow as pa

    numbers = {"offset", "size", "packed"}
    kinds = {name: pa.int64() if name in numbers else pa.string() for name in LocalImage._fields}
    fields = [("row", pa.int64()), *(kinds | {"path": pa.binary()}).items()]
    metadata = {PARQUET_KEY: LOCAL}
    if root is not None:
        metadata |= {_ROOT.decode(): os.fsencode(root).hex()}
    return pa.schema(fields, metadata=metadata)


class Writer:
    """Writes the table, a context manager; equal rows give equal bytes."""

    def __init__(self, path: Path, root: str) -> None:
        self._path = path
        self._schema = _schema(root)
        self._count = 0

    def __enter__(self) -> Writer:
        import pyarrow.parquet as pq

        self._writer = pq.ParquetWriter(self._path, self._schema, compression="zstd")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._writer.close()

    def add(self, rows: list[dict[str, Any]]) -> None:
        """Write rows of :func:`row_of`, numbered on, as a row group."""
        import pyarrow as pa

        numbered = [{"row": self._count + place, **row} for place, row in enumerate(rows)]
        self._count += len(rows)
        self._writer.write_table(pa.Table.from_pylist(numbered, self._schema))


class LocalTable:
    """A table of images on disk. Attributes: `path`, `rows`, `root`, `digest` (of the file)."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        import pyarrow.parquet as pq

        self.path = Path(path)
        with pq.ParquetFile(self.path) as file:
            self.rows: int = file.metadata.num_rows
            metadata = file.schema_arrow.metadata or {}
        self.root = os.fsdecode(bytes.fromhex(metadata[_ROOT].decode()))
        self.digest = sha256_file(self.path)

    def images(self) -> Iterator[LocalImage]:
        """Iterate over the images in order. Raises :class:`UserError` if the file is damaged."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            with pq.ParquetFile(self.path) as file:
                for block in file.iter_batches(_BLOCK, columns=list(LocalImage._fields)):
                    yield from map(
                        LocalImage._make,
                        zip(*(column.to_pylist() for column in block.columns), strict=True),
                    )
        except (pa.ArrowException, OSError) as error:
            detail = str(error).splitlines()[0]
            raise UserError(f"{self.path}: damaged ({detail}); write it anew") from None


def is_local(path: str | os.PathLike[str]) -> bool:
    """True if a file is a table of images on disk, False for a URL list or no parquet at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_schema(path).metadata or {}
    except (pa.ArrowException, OSError):
        return False
    return bool(metadata.get(PARQUET_KEY.encode()) == LOCAL.encode() and _ROOT in metadata)
