"""How long a run of LAION's size takes to seal and to verify, and how much memory.

    python benchmarks/audit.py [--chunks 224] [--tars 40000] [--folder DIR]

The records of such a run are written, with the hashes that they name, and beside them files of the
real sizes that hold nothing (sparse, so that they take no room). Then `mlcd audit seal` and `mlcd
audit verify` are run as programs. Both read records and attributes, and no tar. Prints seconds,
CPU seconds and peak memory of each, and the size of the lock.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from mlcd.data import hdf5, image_store
from mlcd.utils.records import write_record

#: Images of LAION-400M that still arrive, about.
_IMAGES = 390_000_000
#: Bytes per image: in a tar, and as rows of embeddings (768 float16 and where it lies) and labels.
_IN_TAR, _EMBEDDED, _LABELED = 15_000, 1_600, 60
_STAGES = ("prepare", "download", "embed", "cluster", "label", "train")


def main(arguments: list[str] | None = None) -> None:
    """Print what sealing and verifying cost."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, default=224, help="chunks, one job each [224]")
    parser.add_argument("--tars", type=int, default=40_000, help="tars of all chunks [40000]")
    parser.add_argument("--folder", help="where the results are written [a temporary folder]")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        results = Path(folder) / "results"
        write(results, given.chunks, given.tars)
        stages = json.dumps({name: {"section": {}, "code": "0" * 16} for name in _STAGES})
        print(f"{given.chunks} chunks, {given.tars} tars")
        _timed("seal", ["seal", str(results), "--stages", stages])
        lock = results / "audit" / "lock.json"
        print(f"lock.json: {lock.stat().st_size / 1e6:.1f} MB")
        _timed("verify", ["verify", str(results)])


def _timed(name: str, words: list[str]) -> None:
    begin = time.monotonic()
    process = os.posix_spawn(
        sys.executable, [sys.executable, "-m", "mlcd", "audit", *words], os.environ
    )
    _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(f"{name} ended with {os.waitstatus_to_exitcode(status)}")
    wall, cpu = time.monotonic() - begin, usage.ru_utime + usage.ru_stime
    print(f"{name}: {wall:.1f} s, {cpu:.1f} s of CPU, {usage.ru_maxrss / 1024:.0f} MB", flush=True)


def write(results: Path, chunks: int, tars: int) -> None:
    """Write the records of a run, and empty files of the sizes that it would have."""
    share = _IMAGES // chunks
    made: dict[str, list[str]] = {"images": [], "embeddings": [], "labels": []}
    for number in range(chunks):
        chunk = f"laion-{number:05d}"
        count = tars * (number + 1) // chunks - tars * number // chunks
        urls = _urls(results, chunk, share)
        made["images"].append(_images(results, chunk, urls, share, count))
        vectors = {"manifest": made["images"][-1], "chunk": chunk}
        made["embeddings"].append(_hdf5(results, "embeddings", chunk, vectors, share * _EMBEDDED))
    section = json.dumps({"centers": None})
    about = {"embeddings": json.dumps(made["embeddings"]), "section": section}
    centers = _hdf5(results, "clusters", "centroids", about, 1_000_000 * 768 * 4, "centroids")
    for number, vectors_hash in enumerate(made["embeddings"]):
        labels = {"embeddings": vectors_hash, "centroids": centers}
        chunk = f"laion-{number:05d}"
        made["labels"].append(_hdf5(results, "labels", chunk, labels, share * _LABELED))
    write_record(results / "labels" / "summary.json", {"made_from": {"labels": made["labels"]}})
    weights = results / "train" / "encoder.safetensors"
    _empty(weights, 1_200_000_000)
    del made["embeddings"]
    encoder = {"sha256": _hash("encoder"), "made_from": {**made, "centroids": [centers]}}
    write_record(weights.with_suffix(".json"), encoder)


def _urls(results: Path, chunk: str, rows: int) -> str:
    table = _hash(f"urls {chunk}")
    _empty(results / "urls" / f"{chunk}.parquet", rows * 100)
    write_record(results / "urls" / f"{chunk}.json", {"chunk": chunk, "rows": rows, "table": table})
    return table


def _images(results: Path, chunk: str, urls: str, rows: int, count: int) -> str:
    folder = results / "images" / chunk
    tars = []
    for number in range(count):
        name, size = image_store.tar_name(number), rows // count * _IN_TAR
        _empty(folder / name, size)
        tars.append({"name": name, "sha256": _hash(f"{chunk} {name}"), "bytes": size,
                     "images": rows // count})  # fmt: skip
    _empty(folder / "rows.parquet", rows * 150)
    manifest: dict[str, Any] = {
        "format": 1, "chunk": chunk, "rows": rows, "counts": {"success": rows}, "tars": tars,
        "table": _hash(f"rows {chunk}"), "urls": urls,
    }  # fmt: skip
    manifest["fingerprint"] = image_store.fingerprint(manifest)
    write_record(folder / "manifest.json", manifest)
    return str(manifest["fingerprint"])


def _hdf5(
    results: Path, folder: str, name: str, about: dict[str, Any], size: int, kind: str = ""
) -> str:
    path = results / folder / f"{name}.h5"
    path.parent.mkdir(parents=True, exist_ok=True)
    hdf5.write(path, kind or folder, {"row": np.zeros(1, np.int32)}, about)
    fingerprint = hdf5.fingerprint(path)
    os.truncate(path, max(size, path.stat().st_size))
    return fingerprint


def _hash(word: str) -> str:
    return hashlib.sha256(word.encode()).hexdigest()


def _empty(path: Path, size: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.truncate(size)


if __name__ == "__main__":
    main()
