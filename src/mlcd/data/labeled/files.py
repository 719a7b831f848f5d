"""Readers of labeled images in tars, folders of classes and parquets."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from mlcd.config.labeled import Dataset
from mlcd.data.labeled.layout import files, files_below, parquet_fields, split_folders
from mlcd.data.labeled.sample import Sample, from_fields
from mlcd.data.members import IMAGES, ending_of, is_hidden, labeled_members, sample_name
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER

#: Rows of a parquet decoded at once: images lie in them.
_ROWS = 64


def tars(dataset: Dataset) -> Iterator[Sample]:
    """A webdataset tar, or a folder of them: KEY.jpg (png, webp, …) beside KEY.json."""
    folder = Path(dataset.path).is_dir()
    for path in files(dataset.path, "tar"):
        for key, data, fields in labeled_members(path):
            # Tars of one folder may number their keys alike.
            name = f"{path.stem}/{key}" if folder else key
            yield from_fields(dataset, path, name, data, fields)


def split_tars(dataset: Dataset) -> Iterator[Sample]:
    """A folder per split with webdataset tars: KEY.jpg beside KEY.cls (the class) or KEY.json."""
    for split, folder in split_folders(dataset.path).items():
        for path in files(folder, "tar"):
            with_class = _has_class_members(path)
            kept = dataset.model_copy(update={"label_field": "cls"}) if with_class else dataset
            for key, data, fields in labeled_members(path, "cls" if with_class else "json"):
                # Tars of one split may number their keys alike.
                name = f"{split}/{path.stem}/{key}"
                yield from_fields(kept, path, name, data, fields, split)


def _has_class_members(path: Path) -> bool:
    """Look at the first members of a tar: the first sample's."""
    import tarfile

    try:
        with tarfile.open(path) as tar:
            named = (member.name for member in tar if not is_hidden(member.name))
            return any(sample_name(name)[1] == "cls" for name in islice(named, 8))
    except tarfile.TarError as error:
        raise UserError(f"{path}: not a whole webdataset tar ({error})") from None


def class_folders(dataset: Dataset) -> Iterator[Sample]:
    """A folder per split, in it a folder per class, in it images at any depth.

    Hidden files and folders (`.ipynb_checkpoints`, `._a.jpg`) are counted in the log, not read.
    """
    hidden = 0
    for split, folder in split_folders(dataset.path).items():
        folders = sorted(entry for entry in folder.iterdir() if entry.is_dir())
        classes = [entry for entry in folders if not is_hidden(entry.name)]
        hidden += len(folders) - len(classes)
        if not classes:
            raise UserError(f"{folder}: holds no class folders; expected {folder}/CLASS/*.jpg")
        for kind in classes:
            # Without links to folders, but with hidden ones, which are counted.
            there = {path for path in kind.rglob("*") if path.is_file()}
            for path in sorted(there.union(files_below(kind))):
                if ending_of(path.name) not in IMAGES:
                    continue
                if is_hidden(path.relative_to(kind).as_posix()):
                    hidden += 1
                    continue
                key = path.relative_to(dataset.path).as_posix()
                yield Sample(key, path.read_bytes(), split, label=kind.name)
    if hidden:
        LOGGER.warning("%s: %d hidden class folders and images left out", dataset.path, hidden)


def parquets(dataset: Dataset) -> Iterator[Sample]:
    """A parquet, or a folder of them, with a row per image.

    Without a column `split_field`, the file's name says the split (train-00000-of-00008.parquet).
    """
    import pyarrow.parquet as pq
    from pyarrow import ArrowInvalid

    for path in files(dataset.path, "parquet"):
        try:
            table = pq.ParquetFile(path)
        except ArrowInvalid as error:
            raise UserError(f"{path}: not a whole parquet ({error}); fetch it again") from None
        named, split = parquet_fields(dataset, path, table.schema_arrow.names)
        columns = sorted({column for column in named.values() if column is not None})
        for row, fields in enumerate(_rows(table, columns, path)):
            key = f"{path.stem}/{row:08d}"
            data = _bytes_of(fields.pop(dataset.image_field), path, key)
            yield from_fields(dataset, path, key, data, fields, split)


def _rows(table: Any, columns: list[str], path: Path) -> Iterator[dict[str, Any]]:
    """Iterate over a parquet's rows; a damaged page shows only when it is read."""
    batches = table.iter_batches(batch_size=_ROWS, columns=columns)
    while True:
        try:
            rows = next(batches).to_pylist()
        except StopIteration:
            return
        except (OSError, ValueError) as error:  # pyarrow's own errors are kinds of these
            reason = " ".join(str(error).split())[:200]
            raise UserError(f"{path}: damaged ({reason}); fetch it again") from None
        yield from rows


def _bytes_of(value: Any, path: Path, key: str) -> bytes:
    """Return an image's bytes: as they are, in a struct of bytes and path, or in a file.

    A path must lie below the parquet's folder: data must not make the program read other files.
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    where = f"{path}: row {key}"
    if not isinstance(value, str):
        raise UserError(
            f"{where}: its image is {type(value).__name__}; expected bytes or a path "
            "(evaluate.datasets.image_field names the column)"
        )
    base = path.parent.resolve()
    try:
        target = (base / value).resolve()
        if not target.is_relative_to(base):
            raise UserError(f"{where}: {value!r} is not below {path.parent}; give relative paths")
        return target.read_bytes()
    except OSError as error:
        raise UserError(f"{where}: {value!r}: {error.strerror}; fetch the images too") from None
    except (ValueError, RuntimeError) as error:  # a NUL in it, a ring of links
        raise UserError(f"{where}: {value!r} is no path ({error}); give relative paths") from None
