"""Rewrite what arrived as the chunk that later stages read (formats.md, `results/images`).

Order, names, owners and times in the tars are functions of the rows alone, so two runs in which
the same rows arrived write the same bytes. Every image's SHA-256 is checked as it is copied.
"""

from __future__ import annotations

import contextlib
import io
import json
import re
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mlcd.data.decode import FORMATS
from mlcd.data.image_store import FORMAT, MANIFEST, TABLE, fingerprint, key_of_row, tar_name
from mlcd.stages.download import shards
from mlcd.stages.download.passes import Outcome, Passes
from mlcd.stages.download.reasons import REASONS
from mlcd.stages.download.url_list import Batch, without_credentials
from mlcd.utils.errors import UserError
from mlcd.utils.files import atomic_path, read_json, sha256_file
from mlcd.utils.logging import progress
from mlcd.utils.ownership import PARQUET_KEY
from mlcd.utils.records import write_record

# Pillow calls a JPEG with further images behind it, as telephones write them, MPO.
_EXTENSIONS = {
    "JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp",
    "TIFF": "tif",
}  # fmt: skip
SCHEMA = pa.schema(
    [
        ("row", pa.int64()), ("key", pa.string()), ("url", pa.string()), ("caption", pa.string()),
        ("status", pa.string()), ("reason", pa.string()), ("passes", pa.int32()),
        ("tar", pa.int32()), ("offset", pa.int64()), ("size", pa.int64()),
        ("sha256", pa.string()), ("width", pa.int32()), ("height", pa.int32()),
    ],
    metadata={PARQUET_KEY: "images"},
)  # fmt: skip
#: Names of tars, and of indexes in their place, as we write them.
TAR = re.compile(r"\d{5,}\.(tar|index)")
#: Rows of a parquet row group, at least: small ones are slow to read.
GROUP = 50_000


def seal(output: Path, passes: Passes, outcome: Outcome, request: str) -> dict[str, Any]:
    """Write tars, table and manifest to `output`; return the manifest.

    Tars without an image are written too: a tar's number is its place in the manifest. Memory:
    one image and one row group. Raises :class:`.shards.DamagedShard` if a fetched shard has
    changed since it was proven; the manifest is then missing.
    """
    output.mkdir(parents=True, exist_ok=True)
    before = tars_of(output / MANIFEST)
    (output / MANIFEST).unlink(missing_ok=True)
    size = passes.section.rows_per_tar
    tars: list[dict[str, Any]] = []
    with row_table(output) as add:
        count = -(-passes.source.rows // size)
        batches = passes.source.batches(size)
        for batch in progress(batches, total=count, label="seal", unit="tar"):
            path = output / tar_name(len(tars))
            lines = write_tar(path, len(tars), batch, passes, outcome)
            tars.append(described(path, lines))
            add(lines)
    counts, asked = outcome.counts(), json.loads(passes.section.for_images())
    return write_manifest(output, passes.source, counts, tars, before, request, asked)


@contextlib.contextmanager
def row_table(output: Path) -> Iterator[Callable[[list[dict[str, Any]]], None]]:
    """Write rows.parquet of the folder `output` atomically; yields what appends rows, as dicts.

    Memory: one row group.
    """
    pending: list[pa.Table] = []
    with (
        atomic_path(output / TABLE) as temporary,
        pq.ParquetWriter(temporary, SCHEMA) as writer,
    ):

        def write() -> None:
            writer.write_table(pa.concat_tables(pending).combine_chunks())
            pending.clear()

        def add(lines: list[dict[str, Any]]) -> None:
            pending.append(pa.Table.from_pylist(lines, SCHEMA))
            if sum(map(len, pending)) >= GROUP:
                write()

        yield add
        if pending:
            write()


class Source(Protocol):
    """The table of the rows that were asked for."""

    rows: int
    digest: str


def write_manifest(
    output: Path,
    source: Source,
    counts: dict[str, int],
    tars: list[dict[str, Any]],
    before: set[str],
    request: str,
    asked: dict[str, object],
    chunk: str | None = None,
) -> dict[str, Any]:
    """Remove the tars of `before` that are none any more; write and return the manifest.

    `asked`: the keys of the config that decide images. `chunk`: its name, else the folder's.
    """
    for name in before - {tar["name"] for tar in tars}:
        (output / name).unlink(missing_ok=True)
    manifest = {
        "format": FORMAT,
        "chunk": chunk or output.name,
        "rows": source.rows,
        "counts": counts,
        "tars": tars,
        "table": sha256_file(output / TABLE),
    }
    manifest["fingerprint"] = fingerprint(manifest)
    manifest |= {"request": request, "urls": source.digest, "asked": asked}
    write_record(output / MANIFEST, manifest)
    return manifest


def described(path: Path, lines: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the manifest's entry of a tar, of whose rows `lines` tell."""
    return {
        "name": path.name,
        "sha256": sha256_file(path),
        "bytes": path.stat().st_size,
        "images": sum(line["status"] == "success" for line in lines),
    }


def tars_of(manifest: Path) -> set[str]:
    """Return the names of the tars that an earlier manifest of ours tells of."""
    try:
        names = {str(tar["name"]) for tar in read_json(manifest)["tars"]}
    except (UserError, KeyError, TypeError):
        return set()
    return {name for name in names if TAR.fullmatch(name)}


def write_tar(
    path: Path, index: int, batch: Batch, passes: Passes, outcome: Outcome
) -> list[dict[str, Any]]:
    """Write the tar of one batch of rows; return their lines of the table."""
    lines = []
    with (
        atomic_path(path) as temporary,
        tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for place, (url, caption) in enumerate(zip(batch.urls, batch.captions, strict=True)):
            row = batch.start + place
            line = line_of(row, url, caption, outcome)
            if line["status"] == "success":
                data = _image(row, passes, outcome)
                name = f"{line['key']}.{extension(data)}"
                line |= {"tar": index, "offset": add_member(tar, name, data)}
                names = ("key", "url", "caption", "sha256", "width", "height")
                fields = {name: line[name] for name in names}
                text = json.dumps(fields, ensure_ascii=False)
                add_member(tar, f"{line['key']}.json", text.encode())
            lines.append(line)
    return lines


def line_of(row: int, url: str, caption: str, outcome: Outcome) -> dict[str, Any]:
    """Return the line of a row in the table; of an image, tar and offset are not yet known."""
    arrived = outcome.reason[row] == 0
    return {
        "row": row,
        "key": key_of_row(row),
        "url": without_credentials(url),
        "caption": caption,
        "status": "success" if arrived else "failed",
        "reason": REASONS[outcome.reason[row]],
        "passes": int(outcome.passes[row]),
        "tar": -1,
        "offset": -1,
        "size": int(outcome.size[row]),
        "sha256": _digest(outcome.sha256[row]).hex() if arrived else "",
        "width": int(outcome.width[row]),
        "height": int(outcome.height[row]),
    }


def _image(row: int, passes: Passes, outcome: Outcome) -> bytes:
    if passes.before is not None and outcome.at_pass[row] == 0:
        place = (int(outcome.shard[row]), int(outcome.offset[row]), int(outcome.size[row]))
        return passes.before.image(*place, _digest(outcome.sha256[row]))
    return shards.read_image(
        passes.folder(int(outcome.at_pass[row])),
        int(outcome.shard[row]),
        int(outcome.offset[row]),
        int(outcome.size[row]),
        _digest(outcome.sha256[row]),
    )


def _digest(value: np.void) -> bytes:
    return value.tobytes()


def extension(data: bytes) -> str:
    """Return the file name's ending for an image, by its header: it may be called otherwise."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return _EXTENSIONS[image.format or "JPEG"]


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a member with owner and time 0; return the offset of its data."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
    return tar.offset - -(-len(data) // 512) * 512
