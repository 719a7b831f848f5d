"""Images on disk in all kinds of places, as people and programs leave them."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from helpers.builders import add_member
from mlcd.config import Download, Prepare
from mlcd.data import listing
from mlcd.data.image_store import ImageStore
from mlcd.data.sources import split
from mlcd.stages.download.job import download
from mlcd.stages.prepare.local import write_chunk

HF = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def class_folders(folder: Path, images: dict[str, bytes], classes: int = 2) -> None:
    """Write each image, by its name without ending, into one of some class folders."""
    for place, (name, data) in enumerate(images.items()):
        path = folder / f"class {place % classes}" / f"{name}.JPEG"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def webdataset(path: Path, images: dict[str, bytes], captions: dict[str, str]) -> None:
    """Write a tar as img2dataset does, with .txt and .json, and its statistics beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for name, data in images.items():
            add_member(tar, f"{name}.jpg", data)
            add_member(tar, f"{name}.txt", captions[name].encode())
            add_member(tar, f"{name}.json", json.dumps({"caption": "of the json"}).encode())
    statistics = {"count": len(images) + 1, "successes": len(images)}
    path.with_name(f"{path.stem}_stats.json").write_text(json.dumps(statistics))
    columns = {name: ["a"] for name in ("url", "caption", "key", "status", "error_message")}
    pq.write_table(pa.table(columns), path.with_suffix(".parquet"))


def hugging_face(path: Path, values: list[object], column: str = "image") -> None:
    """Write a parquet of structs of bytes and path, in small row groups, with captions."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table(
        {
            column: pa.array(values, HF),
            "caption": [f"row {place}" for place in range(len(values))],
        }
    )
    pq.write_table(table, path, row_group_size=2)


def archive(path: Path, images: dict[str, bytes]) -> None:
    """Write a zip, every second member of which is deflated."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for place, (name, data) in enumerate(images.items()):
            method = zipfile.ZIP_DEFLATED if place % 2 else zipfile.ZIP_STORED
            archive.writestr(f"{name}.jpg", data, method)


def listed(metadata: str | Path, folder: Path, **keys: object) -> listing.Kept:
    """List one entry of metadata below `folder`; keys are of the section prepare."""
    section = Prepare.model_validate(keys)
    (source,) = split([str(metadata)], section)[1]
    return listing.kept(source, section, folder / "listings", look=True)


def chunk(metadata: str | Path, folder: Path, **keys: object) -> Path:
    """Prepare all images of one entry as one chunk below `folder`; return its table."""
    kept = listed(metadata, folder, **keys)
    output = folder / "urls" / "c-00000.parquet"
    about = listing.summary(kept.path)
    section = Prepare.model_validate(keys)
    write_chunk(output, str(kept.path), range(kept.images), about, section, 0)
    return output


def indexed(table: Path, output: Path, **keys: object) -> ImageStore:
    """Index a chunk in this process; keys are of the section download."""
    section = Download.model_validate({"min_success": 0, "rows_per_tar": 4, **keys})
    download(table, output, section, processes=1)
    return ImageStore(output)


def in_memory(images: dict[str, bytes]) -> bytes:
    """Return a tar of images."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name, data in images.items():
            add_member(tar, name, data)
    return buffer.getvalue()
