"""croissant.json: the published labels as Croissant 1.0, for loaders and catalogs of data sets."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlcd.commands.audit.bundle.croissant import KINDS, field_of, file_object, is_installed, written
from mlcd.commands.publish.licenses import License
from mlcd.commands.publish.source import Source
from mlcd.utils.errors import UserError

FILE = "croissant.json"
#: Column → type in Croissant, and what it is.
COLUMNS = {
    "url": ("TEXT", "Where the image was fetched from; empty where it was not."),
    "path": ("TEXT", "Where the image lies below its folder; empty where it was fetched."),
    "caption": ("TEXT", "What the list of images says of it; a stranger's words."),
    "sha256": ("TEXT", "SHA-256 of the image's bytes, as its server or folder gives them."),
    "stored_sha256": ("TEXT", "SHA-256 of the image's bytes after they were resized for the run."),
    "width": ("INTEGER", "Pixels, as stored."),
    "height": ("INTEGER", "Pixels, as stored."),
    "label": ("INTEGER", "Numbers of the nearest centers, the nearest first; -1 is none."),
    "similarity": ("FLOAT", "Cosine of the image's embedding to each of these centers."),
}
_LISTS = ("label", "similarity")


def check() -> None:
    """Raise :class:`UserError` if the library that writes it is not installed."""
    if not is_installed():
        raise UserError("mlcroissant: not installed, and Croissant needs it: pip install "
                        "'mlcd[audit]'")  # fmt: skip


def write(
    folder: Path,
    source: Source,
    license: License,
    title: str,
    description: str,
    files: Mapping[str, tuple[str, int]],
) -> None:
    """Write the description of `files` (path → SHA-256, bytes), and read it as a loader would."""
    written(folder / FILE, lambda: _metadata(source, license, title, description, files))


def _metadata(
    source: Source,
    license: License,
    title: str,
    description: str,
    files: Mapping[str, tuple[str, int]],
) -> Any:
    import mlcroissant as mlc

    objects = [file_object(path, size, digest) for path, (digest, size) in files.items()]
    shards = mlc.FileSet(
        id="shards",
        name="shards",
        description="All rows, in the order of the files' names.",
        encoding_formats=[KINDS[".parquet"]],
        includes=["data/*.parquet"],
    )
    fields = []
    for name in source.columns:
        kind, about = COLUMNS[name]
        shape = {"is_array": True, "array_shape": str(source.l)} if name in _LISTS else {}
        fields.append(field_of("images", name, kind, about, file_set="shards", **shape))
    return mlc.Metadata(
        name=title,
        description=description,
        license=[license.url],
        version="1.0.0",
        distribution=[*objects, shards],
        record_sets=[mlc.RecordSet(id="images", name="images", fields=fields)],
    )
