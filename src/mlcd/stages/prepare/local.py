"""Write the rows of a chunk of images on disk: docs/reference/formats.md, results/urls.

Loose images are taken as the listing has them; into tars, zips and parquets is looked here, by one
job per chunk. No image is read.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any

from mlcd.config.prepare import Prepare
from mlcd.data import containers, local_table
from mlcd.data.containers import Entry
from mlcd.data.listing import Summary
from mlcd.data.listing_table import Row, rows
from mlcd.data.url_lists import open_parquet
from mlcd.utils.errors import UserError
from mlcd.utils.files import atomic_path, sha256_file
from mlcd.utils.records import write_record

#: Files beside images that are read at a time, and images that are taken at once.
_WIDTH, _BLOCK = 16, 4096


def write_chunk(
    output: Path, path: str, run: range, about: Summary, section: Prepare, part: int
) -> Counter[str]:
    """Write the images at places `run` of the listing `path`, its chunk `part`; return the counts.

    Raises :class:`UserError` if a tar, zip or parquet is damaged or holds other images than listed.
    """
    root, identity = about.root, about.identity(part, section.chunk_rows)
    counts: Counter[str] = Counter(kept=0)
    notes: Counter[str] = Counter(caption_missing=0)
    with (
        atomic_path(output) as temporary,
        local_table.Writer(temporary, root) as writer,
    ):
        images = _rows(path, run, root, section)
        while block := list(islice(images, _BLOCK)):
            writer.add(block)
            counts["kept"] += len(block)
            notes["caption_missing"] += sum(not row["caption"] for row in block)
    if counts["kept"] != len(run):
        raise UserError(
            f"{path}: places {run.start} to {run.stop - 1} hold {counts['kept']} images; remove "
            "this listing and start the run again, which lists the images anew"
        )
    description: dict[str, Any] = {
        "chunk": output.stem, "source": Path(path).name, "list": identity,
        "start": run.start, "stop": run.stop,
        "rows": counts["kept"], "counts": dict(counts), "notes": dict(notes),
        "table": sha256_file(output),
    }  # fmt: skip
    write_record(output.with_suffix(".json"), description)
    return counts


def _rows(path: str, run: range, root: str, section: Prepare) -> Iterator[dict[str, Any]]:
    files = rows(path, run.start, run.stop)
    with ThreadPoolExecutor(_WIDTH) as pool:
        while block := list(islice(files, _BLOCK)):
            captions = pool.map(lambda file: _caption_beside(root, file, section), block)
            for file, caption in zip(block, captions, strict=True):
                start = max(0, run.start - file.first)
                stop = min(file.images, run.stop - file.first)
                if file.kind == "image":
                    entries = [Entry("", 0, file.size, caption=caption, reason=file.reason)]
                else:
                    entries = _entries(root, file, start, stop, section)
                for entry in entries:
                    yield local_table.row_of(file.path, file.kind, entry)


def _caption_beside(root: str, file: Row, section: Prepare) -> str:
    """Return what the .txt or .json beside a loose image says."""
    if not file.texts or section.caption_column is None:
        return ""
    stem = os.path.join(root, os.fsdecode(file.path)).rpartition(".")[0]  # noqa: PTH118
    texts = {}
    for ending in file.texts.split(","):
        try:
            with Path(f"{stem}.{ending}").open("rb") as handle:
                text = handle.read(containers.LONGEST_TEXT + 1)
        except OSError:  # gone meanwhile: no caption
            continue
        if len(text) <= containers.LONGEST_TEXT:
            texts[ending] = text
    return containers.caption_of(texts, section.caption_column)


def _entries(root: str, file: Row, start: int, stop: int, section: Prepare) -> list[Entry]:
    """Return the images `start` … `stop` − 1 of a tar, zip or parquet."""
    path = Path(root, os.fsdecode(file.path))
    field = section.caption_column
    if not path.exists():
        raise UserError(f"{path}: no such file any more; start the run again, which lists anew")
    if file.kind == "parquet":
        if open_parquet(path).metadata.num_rows != file.images:
            raise _other(path, open_parquet(path).metadata.num_rows, file)
        return containers.parquet_entries(path, section.image_column, field, start, stop)
    read = containers.tar_entries if file.kind == "tar" else containers.zip_entries
    found = read(path, field)
    if len(found) != file.images:
        raise _other(path, len(found), file)
    return found[start:stop]


def _other(path: Path, images: int, file: Row) -> UserError:
    beside = path.with_name(f"{path.stem}_stats.json")
    told = f" (as {beside.name} says: remove it)" if beside.exists() else ""
    return UserError(
        f"{path}: holds {images} images, and the listing says {file.images}{told}; start the run "
        "again, which lists it anew if it changed"
    )
