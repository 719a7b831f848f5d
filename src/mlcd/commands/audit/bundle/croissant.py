"""croissant.json: the run's images as Croissant 1.0, by which loaders and catalogs read data sets.

The files by SHA-256: tars, the tables of their rows, and the labels. A record set per chunk has the
columns of its table. Labels lie in HDF5, which Croissant has no reader for: they are files alone.
"""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import quote

from mlcd.commands.audit import lock as locks
from mlcd.commands.audit.bundle.run import Lacking, Run, write_json
from mlcd.utils.errors import UserError

NAME = "croissant"
FILE = "croissant.json"
#: Tars that are listed one by one: each takes the library 90 kB. Of more, the manifests that name
#: them are listed.
_TARS = 4000
#: Chunks that have a record set.
_CHUNKS = 2000
#: From the bundle's folder to the results.
_UP = "../../"
#: Suffix of a file's name → what it is called on the web.
KINDS = {
    ".tar": "application/x-tar", ".parquet": "application/x-parquet", ".json": "application/json",
    ".h5": "application/x-hdf5",
}  # fmt: skip
#: Column of rows.parquet → type in Croissant, and what it is.
_COLUMNS = {
    "key": ("TEXT", "Name of the image in its tar, and of its row in embeddings and labels."),
    "url": ("TEXT", "Where it was fetched from, or where it lies on disk."),
    "caption": ("TEXT", "What the list says of it."),
    "width": ("INTEGER", "Pixels."),
    "height": ("INTEGER", "Pixels."),
    "sha256": ("TEXT", "Of its bytes in the tar."),
    "status": ("TEXT", "success, or how it failed."),
    "tar": ("INTEGER", "Number of its tar in the chunk; negative where it did not arrive."),
}


def write(run: Run, folder: Path) -> list[Path]:
    """Write the description, and read it again as a user would, which validates it."""
    if not is_installed():
        raise Lacking("mlcroissant")
    import mlcroissant as mlc

    tables = _of_run(run, "images/*/rows.parquet")
    if not tables:
        return []
    return [written(folder / FILE, lambda: _metadata(mlc, run, tables))]


def is_installed() -> bool:
    """True if the library is there that writes and reads Croissant."""
    return importlib.util.find_spec("mlcroissant") is not None


def written(path: Path, made: Callable[[], Any]) -> Path:
    """Write the metadata that `made` returns, and read it again as a user would.

    Returns `path`. Reading validates: :class:`UserError` for what the library refuses.
    """
    import mlcroissant as mlc

    # It warns of a license, a citation and a date that a run does not know.
    logging.getLogger("absl").setLevel(logging.ERROR)
    write_json(path, made().to_json())
    try:
        mlc.Dataset(path)
    except mlc.ValidationError as error:
        why = " ".join(str(error).split())
        raise UserError(f"{path.name}: refused by mlcroissant: {why}") from None
    return path


def file_object(path: str, size: int, digest: str, *, below: str = "") -> Any:
    """Return a file of the data set by name, bytes and SHA-256; `below`: what leads to `path`."""
    import mlcroissant as mlc

    return mlc.FileObject(
        id=quote(path),
        name=quote(path),
        content_url=below + quote(path),
        content_size=f"{size} B",
        encoding_formats=[KINDS.get(PurePosixPath(path).suffix, "text/plain")],
        sha256=digest,
    )


def field_of(records: str, column: str, kind: str, about: str, **where: Any) -> Any:
    """Return a column of a record set; `kind`: TEXT, INTEGER, FLOAT.

    `where`: `file_object` or `file_set` that it is read from, and the shape of its lists.
    """
    import mlcroissant as mlc

    source = {key: where.pop(key) for key in ("file_object", "file_set") if key in where}
    return mlc.Field(
        id=f"{records}/{column}",
        name=f"{records}/{column}",
        description=about,
        data_types=[getattr(mlc.DataType, kind)],
        source=mlc.Source(**source, extract=mlc.Extract(column=column)),
        **where,
    )


def _of_run(run: Run, *patterns: str) -> list[str]:
    """Return the files of images, but not those of chunks that the config no longer has."""
    chunks = {PurePosixPath(path).stem for path in locks.labels_of(run.results, run.lock)}
    paths = run.files(*patterns)
    return [path for path in paths if not chunks or PurePosixPath(path).parts[1] in chunks]


def _metadata(mlc: Any, run: Run, tables: list[str]) -> Any:
    names = ", ".join(entry["name"] for entry in run.files_from_outside())
    tars = _of_run(run, "images/*/*.tar", "images/*/*.index")
    files = [*tables, *(tars if len(tars) <= _TARS else _of_run(run, "images/*/manifest.json"))]
    which = "embedded and kept (curate/rows)" if "curate" in run.lock["stages"] else "embedded"
    told = (
        f"The images that the encoder of run {run.lock['root']} was trained on, in {len(tables):,} "
        f"chunks and {len(tars):,} tars, from: {names or 'lists that were not recorded'}. "
        "Images keep the terms of their owners. "
        "Labels are in labels/{chunk}.h5: row i of `label` is of the i-th image that was "
        f"{which}."
    )
    if len(tars) > _TARS:
        told += " Each manifest.json names the tars of its chunk by SHA-256."
    if len(tables) > _CHUNKS:
        told += f" The first {_CHUNKS:,} chunks have a record set; all tables have the same form."
    return mlc.Metadata(
        name=f"images-{run.lock['root'][:12]}",
        description=told,
        distribution=[
            *_files(run, files),
            *_files(run, locks.labels_of(run.results, run.lock)),
        ],
        record_sets=[_records(mlc, run, table) for table in tables[:_CHUNKS]],
    )


def _files(run: Run, paths: list[str]) -> Iterator[Any]:
    """Iterate over files whose bytes the lock has a hash of: all but HDF5 files over 64 MiB."""
    for path in paths:
        node = run.lock["files"][path]
        if digest := node["hash"] if node["of"] == "bytes" else node["sealed"]:
            yield file_object(path, node["size"], digest, below=_UP)


def _records(mlc: Any, run: Run, table: str) -> Any:
    """Return the record set of a chunk: those columns that its table has."""
    import pyarrow.parquet as pq

    name = quote(PurePosixPath(table).parent.name)
    there = set(pq.read_schema(run.results / table).names)
    fields = [
        field_of(name, column, kind, about, file_object=quote(table))
        for column, (kind, about) in _COLUMNS.items()
        if column in there
    ]
    return mlc.RecordSet(id=name, name=name, key=[f"{name}/key"], fields=fields)
