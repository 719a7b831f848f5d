"""Small stores of known content, written in the real formats; shared by the tests of all stages."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tarfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import psutil
from PIL import ExifTags, Image

from mlcd.data import hdf5
from mlcd.data.image_store import MANIFEST, TABLE, key_of_row, tar_name
from mlcd.utils.files import sha256_file, sha256_json
from mlcd.utils.records import CHECKSUM, write_csv, write_record


def jpeg(seed: int, side: int = 48) -> bytes:
    """Return a JPEG of a smooth random pattern, different for every seed."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8), "RGB")
    buffer = io.BytesIO()
    small.resize((side, side), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def seen_through(side: int = 50) -> bytes:
    """Return a PNG whose left half is black that nothing is seen of, the right a pattern.

    It is stored upside down, and says so.
    """
    image = Image.open(io.BytesIO(jpeg(1, side))).convert("RGBA")
    image.paste((0, 0, 0, 0), (0, 0, side // 2, side))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 3
    buffer = io.BytesIO()
    image.transpose(Image.Transpose.ROTATE_180).save(buffer, "PNG", exif=exif)
    return buffer.getvalue()


def memory_limit(mib: int) -> str:
    """Return a --memory-limit that leaves `mib` MiB beside what the tests' own process holds."""
    return f"{(psutil.Process().memory_info().rss >> 20) + mib}MiB"


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> int:
    """Append one USTAR member with time and owner 0; return the offset of its data."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))
    return tar.offset - (len(data) + 511) // 512 * 512


def image_store(
    folder: Path,
    images: list[bytes] | int = 12,
    *,
    rows_per_tar: int = 5,
    captions: list[str] | None = None,
    seed: int = 0,
) -> Path:
    """Write `images/{chunk}` (the name of `folder`) of whole tars; return the manifest's path.

    `images` holds bytes (taken as they are, even if damaged) or a number of random JPEGs.
    """
    if isinstance(images, int):
        images = [jpeg(1000 * seed + index) for index in range(images)]
    folder.mkdir(parents=True, exist_ok=True)
    rows, tars = [], []
    for first in range(0, len(images), rows_per_tar):
        path = folder / tar_name(first // rows_per_tar)
        block = images[first : first + rows_per_tar]
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for row, data in enumerate(block, start=first):
                key = key_of_row(row)
                caption = captions[row] if captions else f"image {row}"
                url = f"http://127.0.0.1/{key}.jpg"
                offset = add_member(tar, f"{key}.jpg", data)
                sha256 = hashlib.sha256(data).hexdigest()
                fields = {"key": key, "url": url, "caption": caption, "sha256": sha256}
                fields |= {"width": 48, "height": 48}
                add_member(tar, f"{key}.json", json.dumps(fields).encode())
                rows.append(
                    {
                        "row": row, "key": key, "url": url, "caption": caption,
                        "status": "success", "reason": "", "passes": 1, "tar": len(tars),
                        "offset": offset, "size": len(data), "width": 48, "height": 48,
                        "sha256": sha256,
                    }
                )  # fmt: skip
        tars.append(
            {
                "name": path.name,
                "sha256": sha256_file(path),
                "bytes": path.stat().st_size,
                "images": len(block),
            }
        )
    frame = pd.DataFrame(rows).astype({"tar": "int32", "passes": "int32"})
    frame.to_parquet(folder / TABLE, index=False)
    manifest = {
        "format": 1,
        "chunk": folder.name,
        "rows": len(rows),
        "counts": {"success": len(rows)},
        "tars": tars,
        "table": sha256_file(folder / TABLE),
    }
    write_record(folder / MANIFEST, {**manifest, "fingerprint": sha256_json(manifest)})
    return folder / MANIFEST


def unit_vectors(n: int, d: int, *, groups: int | None = None, seed: int = 0) -> np.ndarray:
    """Return float32 unit rows [n, d]; with `groups`, planted around that many directions."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, d))
    if groups:
        centers = rng.standard_normal((groups, d)) * 3
        rows = rows + centers[rng.integers(0, groups, n)]
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def embeddings_file(
    path: Path, vectors: np.ndarray, *, manifest: Path | None = None, model: str = "test"
) -> Path:
    """Write `vectors` [n, d] as the embeddings of a chunk; image places come from `manifest`."""
    n = len(vectors)
    places = {"tar": np.zeros(n, np.int32), "offset": np.zeros(n, np.int64)}
    places |= {"size": np.zeros(n, np.int64), "digest": np.zeros(n, np.uint64)}
    keys = np.array([key_of_row(row).encode() for row in range(n)], dtype="S9")
    fingerprint = ""
    if manifest is not None:
        table = pd.read_parquet(manifest.parent / TABLE).query("status == 'success'").iloc[:n]
        table["digest"] = [int(word[:16], 16) for word in table["sha256"]]
        places = {name: table[name].to_numpy(kind.dtype) for name, kind in places.items()}
        keys = table["key"].to_numpy().astype("S9")
        fingerprint = json.loads(manifest.read_text())["fingerprint"]
    datasets = {
        "embedding": vectors.astype(np.float16),
        "key": keys,
        **places,
        "failed_key": np.zeros(0, "S9"),
        "failed_reason": np.zeros(0, "S32"),
    }
    attributes = {
        "chunk": path.stem,
        "model": json.dumps({"name": model, "dim": vectors.shape[1]}),
        "manifest": fingerprint,
    }
    hdf5.write(path, "embeddings", datasets, attributes)
    return path


def centroids_file(path: Path, vectors: np.ndarray, *, model: str = "test") -> Path:
    """Write `vectors` [K, d] as k-means centroids."""
    datasets = {
        "centroid": vectors.astype(np.float32),
        "size": np.ones(len(vectors), np.int64),
        "objective": np.array([0.5]),
        "empty": np.zeros(1, np.int64),
    }
    attributes = {
        "model": json.dumps({"name": model, "dim": vectors.shape[1]}),
        "embeddings": "[]",
        "section": "{}",
    }
    hdf5.write(path, "centroids", datasets, attributes)
    return path


def labels_file(path: Path, labels: np.ndarray, num_classes: int, embeddings: Path) -> Path:
    """Write `labels` [n, l] as the labels of the chunk whose embeddings are in `embeddings`."""
    datasets = {
        "label": labels.astype(np.int32),
        "similarity": np.where(labels >= 0, 0.5, 0).astype(np.float16),
        "gap": np.full(len(labels), 0.25, np.float16),
    }
    attributes = {
        "chunk": path.stem,
        "num_classes": num_classes,
        "embeddings": hdf5.fingerprint(embeddings),
        "centroids": "",
        "section": "{}",
    }
    hdf5.write(path, "labels", datasets, attributes)
    return path


def set_attributes(path: Path, **values: object) -> None:
    """Change attributes of an HDF5 file as if its stage had written them so."""
    with h5py.File(path, "r+") as file:
        file.attrs.update(values)
        about = {
            name: value.item() if isinstance(value, np.generic) else value
            for name, value in file.attrs.items()
            if name not in ("fingerprint", "content")
        }
        file.attrs["fingerprint"] = sha256_json([json.loads(file.attrs["content"]), about])


def change_record(path: Path, **values: object) -> None:
    """Change fields of one of our JSON files as if its stage had written them so."""
    found = {**json.loads(path.read_text()), **values}
    found.pop(CHECKSUM, None)
    # Not by write_record, which writes no NaN.
    path.write_text(json.dumps({**found, CHECKSUM: sha256_json(found)}))


def csv_table(path: Path, text: str) -> None:
    """Write CSV of plain cells as our stages do."""
    columns, *rows = (line.split(",") for line in text.splitlines())
    write_csv(path, columns, rows)


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and holds not one row."""
    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))
    return b"\x89PNG\r\n\x1a\n" + chunk + struct.pack(">I", 1 << 20) + b"IDAT"
