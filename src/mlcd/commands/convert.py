"""`mlcd convert E.h5 … --output DIR`: embeddings and labels as .npy and parquet, for others.

- npy: img_emb/img_emb_0.npy and metadata/metadata_0.parquet, as clip-retrieval writes them: for
  autofaiss, embedding-reader, FiftyOne, numpy
- parquet: a file per chunk with a column `embedding` of float32: for embedding-atlas, DuckDB

Rows are copied by blocks. Of a file of centroids, one .npy is made.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlcd.utils.errors import UserError
from mlcd.utils.files import atomic_path
from mlcd.utils.logging import LOGGER, progress
from mlcd.utils.ownership import PARQUET_KEY, claim, claimed_folder
from mlcd.utils.records import write_record

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

    from mlcd.data.embeddings import Embeddings
    from mlcd.data.labels import Labels

#: Written last into the folder; by it a folder is known as ours.
RECORD = "convert.json"
_BLOCK = 1 << 14
_COLUMNS = ("url", "caption", "width", "height")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what is read, and what is written."""
    parser.add_argument(
        "files", nargs="+", metavar="E.h5", help="embeddings/*.h5, or clusters/centroids.h5"
    )
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="folder to write; of centroids, an .npy"
    )
    parser.add_argument(
        "--to", choices=["npy", "parquet"], default="npy",
        help="npy: as clip-retrieval writes it (autofaiss, FiftyOne); parquet: vectors in a column "
        "(embedding-atlas, DuckDB) [npy]",
    )  # fmt: skip
    parser.add_argument(
        "--images", nargs="+", default=[], metavar="MANIFEST",
        help="images/*/manifest.json: adds url, caption, width and height of each image",
    )  # fmt: skip
    parser.add_argument(
        "--labels", nargs="+", default=[], metavar="L.h5",
        help="labels/*.h5: adds label and similarity of each image",
    )  # fmt: skip
    parser.add_argument("--log", metavar="FILE", help="also append log lines to this file")


def run(arguments: argparse.Namespace, section: object = None) -> None:
    """Convert all files. Raises :class:`UserError` if they do not belong together."""
    from mlcd.data.embeddings import open_all

    if _are_centroids(arguments.files[0]):
        _centroids(arguments.files, Path(arguments.output))
        return
    embeddings = open_all(arguments.files)
    beside = _Beside(arguments.images, arguments.labels)
    parts = [(file, *beside(file)) for file in embeddings]
    width = len(str(max(1, len(parts) - 1)))
    with claimed_folder(arguments.output, (RECORD,)) as folder:
        (folder / RECORD).unlink(missing_ok=True)
        names = []
        for number, part in enumerate(progress(parts, label="convert", unit="file")):
            tail = f"{number:0{width}d}"
            write = _write_npy if arguments.to == "npy" else _write_parquet
            names += write(folder, tail, *part)
        about = {"mlcd": "converted", "files": names, "rows": sum(file.n for file in embeddings)}
        write_record(folder / RECORD, about)
    LOGGER.info("%s: %d rows of %d dimensions", folder, about["rows"], embeddings[0].d)


def _are_centroids(path: str) -> bool:
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return bool(file.attrs.get("kind") == "centroids")
    except (OSError, ValueError):
        return False


def _centroids(paths: Sequence[str], output: Path) -> None:
    from mlcd.data.centroids import Centroids

    if len(paths) > 1 or output.suffix != ".npy":
        raise UserError(f"{paths[0]}: centroids; give this file alone, and --output NAME.npy")
    claim(output)
    found = Centroids(paths[0])
    blocks = (found.rows(start, min(start + _BLOCK, found.K)) for start in _starts(found.K))
    _npy(output, (found.K, found.d), np.dtype(np.float32), blocks)
    LOGGER.info("%s: %d centers of %d dimensions", output, found.K, found.d)


def _starts(rows: int) -> range:
    return range(0, rows, _BLOCK)


class _Beside:
    """What is known of the images of a file of embeddings."""

    def __init__(self, images: Sequence[str], labels: Sequence[str]) -> None:
        from mlcd.data.image_store import ImageStore
        from mlcd.data.labels import Labels

        self._images = {store.chunk: store for store in map(ImageStore, images)}
        self._labels = {file.chunk: file for file in map(Labels, labels)}

    def __call__(self, file: Embeddings) -> tuple[pd.DataFrame | None, Labels | None]:
        chunk = str(file.attributes.get("chunk", file.path.stem))
        store, labels = self._images.get(chunk), self._labels.get(chunk)
        for option, given, known in (
            ("images", self._images, store), ("labels", self._labels, labels),
        ):  # fmt: skip
            if given and known is None:
                raise UserError(f"{file.path}: none of --{option} is of its chunk {chunk}; add it")
        if store and file.attributes.get("manifest") != store.fingerprint:
            raise UserError(f"{file.path}: made from other images than {store.folder}")
        if labels and labels.embeddings != file.fingerprint:
            raise UserError(f"{labels.path}: made from other embeddings than {file.path}")
        if store is None:
            return None, labels
        return store.rows_of(file.keys(), _COLUMNS), labels


def _rows(
    file: Embeddings, table: pd.DataFrame | None, labels: Labels | None, start: int
) -> pa.Table:
    """Return what is known of a block of rows, as columns."""
    import pyarrow as pa

    stop = min(start + _BLOCK, file.n)
    keys = [key.decode("utf-8", "replace") for key in file.keys(start, stop)]
    chunk = str(file.attributes.get("chunk", file.path.stem))
    columns: dict[str, Any] = {
        "chunk": pa.array([chunk] * len(keys), pa.string()),
        "key": pa.array(keys, pa.string()),
    }
    if table is not None:
        for name in _COLUMNS:
            kind = pa.string() if name in ("url", "caption") else pa.int32()
            columns[name] = pa.array(table[name].iloc[start:stop].tolist(), kind)
    if labels is not None:
        columns["label"] = _lists(labels.label(start, stop))
        if labels.has_similarity:
            columns["similarity"] = _lists(labels.similarity(start, stop).astype(np.float32))
    return pa.table(columns)


def _lists(rows: np.ndarray) -> pa.Array:
    import pyarrow as pa

    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])


def _write_npy(
    folder: Path, tail: str, file: Embeddings, table: pd.DataFrame | None, labels: Labels | None
) -> list[str]:
    """Write the rows of a file, and what is known of them; return the names."""
    names = [f"img_emb/img_emb_{tail}.npy", f"metadata/metadata_{tail}.parquet"]
    blocks = (file.read(start, start + _BLOCK).astype(np.float16) for start in _starts(file.n))
    _npy(folder / names[0], (file.n, file.d), np.dtype(np.float16), blocks)
    tables = (_rows(file, table, labels, start) for start in _starts(max(1, file.n)))
    _parquet(folder / names[1], tables)
    return names


def _write_parquet(
    folder: Path, tail: str, file: Embeddings, table: pd.DataFrame | None, labels: Labels | None
) -> list[str]:
    """Write one parquet of rows and what is known of them; return its name."""
    name = f"embeddings_{tail}.parquet"

    def tables() -> Iterator[pa.Table]:
        for start in _starts(max(1, file.n)):
            rows = file.read(start, min(start + _BLOCK, file.n))
            known = _rows(file, table, labels, start)
            yield known.append_column("embedding", _lists(rows))

    _parquet(folder / name, tables())
    return [name]


def _npy(path: Path, shape: tuple[int, int], dtype: np.dtype, blocks: Iterator[np.ndarray]) -> None:
    header = {"descr": dtype.str, "fortran_order": False, "shape": shape}
    with atomic_path(path) as temporary, temporary.open("wb") as handle:
        np.lib.format.write_array_header_1_0(handle, header)
        for block in blocks:
            handle.write(np.ascontiguousarray(block).data if block.size else b"")


def _parquet(path: Path, tables: Iterator[pa.Table]) -> None:
    import pyarrow.parquet as pq

    first = next(tables)
    schema = first.schema.with_metadata({PARQUET_KEY: "converted"})
    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(temporary, schema, compression="zstd") as writer,
    ):
        writer.write_table(first.cast(schema))
        for table in tables:
            writer.write_table(table.cast(schema))
