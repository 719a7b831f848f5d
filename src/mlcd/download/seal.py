"""Rewrite what arrived as the chunk that later stages read: docs/formats.md, `results/images`.

Order, names, owners and times in the tars are functions of the rows alone, so two runs in which
the same rows arrived write the same bytes. Every picture's SHA-256 is checked as it is copied.
"""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from mlcd.download import shards
from mlcd.download.passes import Outcome, Passes
from mlcd.download.reasons import REASONS
from mlcd.download.source import Batch
from mlcd.files import atomic_path, sha256_file, sha256_json, write_json
from mlcd.images import FORMATS
from mlcd.progress import progress
from mlcd.stores.images import FORMAT, MANIFEST, TABLE, key_of_row, tar_name

# Pillow calls a JPEG with further pictures behind it, as telephones write them, MPO.
_EXTENSIONS = {
    "JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp",
    "TIFF": "tif",
}  # fmt: skip
_SCHEMA = pa.schema(
    [
        ("row", pa.int64()), ("key", pa.string()), ("url", pa.string()), ("caption", pa.string()),
        ("status", pa.string()), ("reason", pa.string()), ("passes", pa.int32()),
        ("tar", pa.int32()), ("offset", pa.int64()), ("size", pa.int64()),
        ("sha256", pa.string()), ("width", pa.int32()), ("height", pa.int32()),
    ]
)  # fmt: skip
#: Rows of a parquet row group, at least: small ones are slow to read.
_GROUP = 50_000


def seal(output: Path, passes: Passes, outcome: Outcome, request: str) -> dict[str, Any]:
    """Write tars, table and manifest to `output`; return the manifest.

    Tars without a picture are written too: a tar's number is its place in the manifest. Memory:
    one picture and one row group. Raises :class:`.shards.DamagedShard` if a fetched shard has
    changed since it was proven; the manifest is then missing.
    """
    output.mkdir(parents=True, exist_ok=True)
    (output / MANIFEST).unlink(missing_ok=True)
    for leftover in output.glob(".*.tmp*"):
        leftover.unlink()
    size = passes.section.rows_per_tar
    tars: list[dict[str, Any]] = []
    pending: list[pa.Table] = []
    with (
        atomic_path(output / TABLE) as temporary,
        pq.ParquetWriter(temporary, _SCHEMA) as writer,
    ):
        count = -(-passes.source.rows // size)
        batches = passes.source.batches(size)
        for batch in progress(batches, total=count, label="seal", unit="tar"):
            path = output / tar_name(len(tars))
            lines = _write_tar(path, len(tars), batch, passes, outcome)
            tars.append(
                {
                    "name": path.name,
                    "sha256": sha256_file(path),
                    "bytes": path.stat().st_size,
                    "pictures": sum(line["status"] == "success" for line in lines),
                }
            )
            pending.append(pa.Table.from_pylist(lines, _SCHEMA))
            if sum(map(len, pending)) >= _GROUP:
                writer.write_table(pa.concat_tables(pending).combine_chunks())
                pending = []
        if pending:
            writer.write_table(pa.concat_tables(pending).combine_chunks())
    for extra in output.glob("[0-9]*.tar"):
        if extra.name not in {tar["name"] for tar in tars}:
            extra.unlink()
    manifest = {
        "format": FORMAT,
        "chunk": output.name,
        "rows": passes.source.rows,
        "counts": outcome.counts(),
        "tars": tars,
        "table": sha256_file(output / TABLE),
    }
    # The fingerprint is of the content; what was asked for only says when nothing is to be done.
    manifest |= {"fingerprint": sha256_json(manifest), "request": request}
    write_json(output / MANIFEST, manifest)
    return manifest


def _write_tar(
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
            line = _line(row, url, caption, outcome)
            if line["status"] == "success":
                data = _picture(row, passes, outcome)
                name = f"{line['key']}.{_extension(data)}"
                line |= {"tar": index, "offset": _add(tar, name, data)}
                names = ("key", "url", "caption", "sha256", "width", "height")
                fields = {name: line[name] for name in names}
                text = json.dumps(fields, ensure_ascii=False)
                _add(tar, f"{line['key']}.json", text.encode())
            lines.append(line)
    return lines


def _line(row: int, url: str, caption: str, outcome: Outcome) -> dict[str, Any]:
    arrived = outcome.reason[row] == 0
    return {
        "row": row,
        "key": key_of_row(row),
        "url": url,
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


def _picture(row: int, passes: Passes, outcome: Outcome) -> bytes:
    return shards.read_picture(
        passes.folder(int(outcome.at_pass[row])),
        int(outcome.shard[row]),
        int(outcome.offset[row]),
        int(outcome.size[row]),
        _digest(outcome.sha256[row]),
    )


def _digest(value: np.void) -> bytes:
    return value.tobytes()


def _extension(data: bytes) -> str:
    """Return the file name's ending for a picture, by its header: it may be called otherwise."""
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        return _EXTENSIONS[image.format or "JPEG"]


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append a member with owner and time 0; return the offset of its data."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
    return tar.offset - -(-len(data) // 512) * 512
