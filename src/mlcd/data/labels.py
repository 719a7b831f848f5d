"""The store of labels: one file per chunk, `labels/{chunk}.h5` (docs/reference/formats.md)."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from mlcd.data import hdf5
from mlcd.data.embeddings import Embeddings, Places
from mlcd.data.image_store import ImageStore
from mlcd.utils.errors import UserError
from mlcd.utils.records import read_record

if TYPE_CHECKING:
    import pandas as pd

KIND = "labels"


def of_run(results: str | os.PathLike[str]) -> list[Path]:
    """Return the files of labels of the run in the folder `results`, sorted by name.

    Those that labels/summary.json counts: a list that was taken out of the config leaves files of
    its chunks behind. All files, if there is no summary or if it is of other labels.
    """
    paths = sorted((Path(results) / "labels").glob("*.h5"))
    summary = Path(results) / "labels" / "summary.json"
    if not summary.is_file():
        return paths
    counted = set(read_record(summary, "label")["made_from"]["labels"])
    found = {hdf5.fingerprint(path): path for path in paths}
    return sorted(found[one] for one in counted) if counted <= set(found) else paths


class Labels:
    """The labels of one chunk, opened by path. Raises :class:`UserError` if damaged or foreign.

    Row i belongs to row i of the chunk's embeddings. Own labels have none: they say themselves
    where their images lie (`manifest`, the fingerprint of the chunk's images, is then not ''),
    and not how near their centers are (`has_similarity`). Attributes: `path`, `chunk` (name), `n`
    (rows), `l` (labels per row), `num_classes` (K), `embeddings` and `centroids` (fingerprints of
    the files they came from), `vocabulary` (checksum of the words that stage ocr labeled by, else
    ''), `section` (JSON), `fingerprint` (hex); `agreement` (share of exact labels found) on
    `agreement_rows` rows, 1 on 0 rows where the search was exact.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.fspath(path)
        with hdf5.reading(path, KIND) as file:
            shape: tuple[int, ...] = file["label"].shape if "label" in file else ()
            if len(shape) != 2 or shape[1] == 0 or file["label"].dtype != np.int32:
                raise UserError(f"{path}: expected an int32 dataset 'label' [n, l]; rerun label")
            self.manifest = str(file.attrs.get("manifest", ""))
            self.has_similarity = "similarity" in file
            if self.has_similarity != (not self.manifest) or (
                self.has_similarity and file["similarity"].shape != shape
            ):
                raise UserError(f"{path}: expected a dataset 'similarity' [n, l]; rerun label")
            if "num_classes" not in file.attrs:
                raise UserError(f"{path}: has no attribute num_classes; rerun label")
            self.n, self.l = map(int, shape)
            self.num_classes = int(file.attrs["num_classes"])
            self.chunk = str(file.attrs.get("chunk", ""))
            self.embeddings = str(file.attrs.get("embeddings", ""))
            self.centroids = str(file.attrs.get("centroids", ""))
            self.vocabulary = str(file.attrs.get("vocabulary", ""))
            self.section = str(file.attrs.get("section", "{}"))
            self.agreement = float(file.attrs.get("agreement", 1.0))
            self.agreement_rows = int(file.attrs.get("agreement_rows", 0))
            self.fingerprint = str(file.attrs.get("fingerprint", ""))

    @cached_property
    def settings(self) -> dict[str, Any]:
        """What `section` says. Raises :class:`UserError` if it is no JSON object."""
        return hdf5.json_object(self.path, "section", self.section, "label")

    def __len__(self) -> int:
        return self.n

    def label(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return class ids of rows `start … stop − 1`, int32 [rows, l], nearest first.

        −1 pads rows with fewer labels (threshold variant). Raises :class:`UserError` if a checksum
        fails or an id is no class.
        """
        with hdf5.reading(self.path, KIND) as file:
            rows: np.ndarray = _part(file, "label", start, stop)
        if rows.size and not (rows.min() >= -1 and rows.max() < self.num_classes):
            raise UserError(
                f"{self.path}: a label lies outside 0 … {self.num_classes - 1}; rerun label"
            )
        return rows

    def similarity(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return cosine similarities of rows `start … stop − 1`, float16 [rows, l]; 0 pads."""
        with hdf5.reading(self.path, KIND) as file:
            rows: np.ndarray = _part(file, "similarity", start, stop)
        return rows

    def places(self) -> Places:
        """Return where the images of own labels lie. Raises :class:`UserError` for others."""
        with hdf5.reading(self.path, KIND) as file:
            if not all(name in file and file[name].shape == (self.n,) for name in Places._fields):
                raise UserError(f"{self.path}: does not say where its images lie; rerun label")
            return Places(*(hdf5.whole(file, name) for name in Places._fields))

    def keys(self) -> np.ndarray:
        """Return the keys of the images of own labels, bytes S9 [n]."""
        with hdf5.reading(self.path, KIND) as file:
            return hdf5.whole(file, "key")

    def images_in(self, results: str | os.PathLike[str], columns: Sequence[str]) -> pd.DataFrame:
        """Return key, sha256, places and `columns` of the images of all rows, in their order.

        Raises :class:`UserError` if embeddings or images in `results` are not those of the labels.
        """
        store = ImageStore(Path(results, "images", Path(self.path).stem))
        if self.manifest:
            keys, made_from = self.keys(), self.manifest
        else:
            embeddings = Embeddings(self.embeddings_in(results))
            if self.embeddings != embeddings.fingerprint:
                raise UserError(
                    f"{self.path}: of other embeddings than {embeddings.path}; rerun label"
                )
            keys, made_from = embeddings.keys(), str(embeddings.attributes.get("manifest", ""))
        if made_from != store.fingerprint:
            raise UserError(f"{self.path}: of other images than {store.folder}; rerun the stages")
        if len(keys) != self.n:
            raise UserError(f"{self.path}: its rows are not those of {store.folder}; rerun label")
        return store.rows_of(keys, columns)

    def embeddings_in(self, results: str | os.PathLike[str]) -> Path:
        """Return where the embeddings lie that were labeled: the kept ones in a curated run.

        A run that is no longer curated may have files of both kinds: those that were labeled count.
        """
        name = f"{self.chunk}.h5"
        curated = Path(results, "curate", "embeddings", name)
        is_of = curated.is_file() and hdf5.fingerprint(curated) == self.embeddings
        return curated if is_of else Path(results, "embeddings", name)

    def gap(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return how much nearer the last center is than the next, float16 [rows]; −1: no next.

        In cosine similarity, of the l nearest centers whatever the threshold. Raises
        :class:`UserError` if the file has none.
        """
        with hdf5.reading(self.path, KIND) as file:
            if "gap" not in file or file["gap"].shape != (self.n,):
                raise UserError(f"{self.path}: expected a dataset 'gap' [n]; rerun label")
            rows: np.ndarray = _part(file, "gap", start, stop)
        return rows


def _part(file: h5py.File, name: str, start: int, stop: int | None) -> np.ndarray:
    """Return some rows of a dataset; all of them are compared with their hash."""
    return hdf5.whole(file, name) if (start, stop) == (0, None) else file[name][start:stop]


class Writer:
    """Append labels block by block; made by :func:`writing`."""

    def __init__(self, writer: hdf5.Writer) -> None:
        self._writer = writer

    def append(self, label: np.ndarray, similarity: np.ndarray, gap: np.ndarray) -> None:
        """Append `label` [rows, l], `similarity` [rows, l] and `gap` [rows] of the next rows."""
        self._writer.append("label", label.astype(np.int32, copy=False))
        self._writer.append("similarity", similarity.astype(np.float16, copy=False))
        self._writer.append("gap", gap.astype(np.float16, copy=False))


@contextlib.contextmanager
def writing(path: str | os.PathLike[str], attributes: dict[str, Any]) -> Iterator[Writer]:
    """Write labels atomically (docs/reference/formats.md). At least one append is needed."""
    with hdf5.writing(path, KIND, attributes) as writer:
        yield Writer(writer)
