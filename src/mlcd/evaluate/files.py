"""Readers of labelled pictures in tars, folders of classes and parquets."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mlcd.config.evaluate import Dataset
from mlcd.datasets import files, split_folders, split_of_file
from mlcd.errors import UserError
from mlcd.evaluate.datasets import Sample, from_fields
from mlcd.stores.images import PICTURES, labelled_members, member_name

#: Rows of a parquet decoded at once: pictures lie in them.
_ROWS = 64


def tars(dataset: Dataset) -> Iterator[Sample]:
    """A webdataset tar, or a folder of them: KEY.jpg (png, webp, …) beside KEY.json."""
    folder = Path(dataset.path).is_dir()
    for path in files(dataset.path, "tar"):
        for key, data, fields in labelled_members(path):
            # Tars of one folder may number their keys alike.
            name = f"{path.stem}/{key}" if folder else key
            yield from_fields(dataset, path, name, data, fields)


def split_tars(dataset: Dataset) -> Iterator[Sample]:
    """A folder a split with webdataset tars: KEY.jpg beside KEY.cls (the class) or KEY.json."""
    for split, folder in split_folders(dataset.path).items():
        for path in files(folder, "tar"):
            with_class = _has_class_members(path)
            kept = dataset.model_copy(update={"label_field": "cls"}) if with_class else dataset
            for key, data, fields in labelled_members(path, "cls" if with_class else "json"):
                # Tars of one split may number their keys alike.
                name = f"{split}/{path.stem}/{key}"
                yield from_fields(kept, path, name, data, fields, split)


def _has_class_members(path: Path) -> bool:
    """Look at the first members of a tar: the first sample's."""
    import tarfile

    try:
        with tarfile.open(path) as tar:
            for _, member in zip(range(8), tar, strict=False):
                if member_name(member.name)[1] == "cls":
                    return True
    except tarfile.TarError as error:
        raise UserError(f"{path}: not a whole webdataset tar ({error})") from None
    return False


def class_folders(dataset: Dataset) -> Iterator[Sample]:
    """A folder a split, in it a folder a class, in it pictures at any depth."""
    for split, folder in split_folders(dataset.path).items():
        classes = sorted(entry for entry in folder.iterdir() if entry.is_dir())
        if not classes:
            raise UserError(f"{folder}: holds no class folders; expected {folder}/CLASS/*.jpg")
        for kind in classes:
            for path in sorted(kind.rglob("*")):
                if path.suffix[1:].lower() in PICTURES and path.is_file():
                    key = path.relative_to(dataset.path).as_posix()
                    yield Sample(key, path.read_bytes(), split, label=kind.name)


def parquets(dataset: Dataset) -> Iterator[Sample]:
    """A parquet, or a folder of them, with a row a picture.

    Without a column `split_field`, the file's name says the split (train-00000-of-00008.parquet).
    """
    import pyarrow.parquet as pq
    from pyarrow import ArrowInvalid

    for path in files(dataset.path, "parquet"):
        try:
            table = pq.ParquetFile(path)
        except ArrowInvalid as error:
            raise UserError(f"{path}: not a whole parquet ({error}); fetch it again") from None
        named = {
            "image_field": dataset.image_field,
            "label_field": dataset.label_field,
            "tags_field": dataset.tags_field,
            "group_field": dataset.group_field,
            "caption_field": dataset.caption_field,
            "split_field": dataset.split_field,
        }
        present = table.schema_arrow.names
        split = None if dataset.split_field in present else split_of_file(path)
        if split is not None:
            del named["split_field"]
        for option, column in named.items():
            if column is not None and column not in present:
                raise UserError(
                    f"{path}: has no column {column!r}; evaluate.datasets.{option} names it, of "
                    f"{', '.join(present)}"
                )
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
    """Return a picture's bytes: as they are, in a struct of bytes and path, or in a file.

    A path must lie below the parquet's folder: data must not make the program read other files.
    """
    if isinstance(value, dict):
        value = value.get("bytes") or value.get("path")
    if isinstance(value, bytes):
        return value
    where = f"{path}: row {key}"
    if not isinstance(value, str):
        raise UserError(
            f"{where}: its picture is {type(value).__name__}; expected bytes or a path "
            "(evaluate.datasets.image_field names the column)"
        )
    base = path.parent.resolve()
    try:
        target = (base / value).resolve()
        if not target.is_relative_to(base):
            raise UserError(f"{where}: {value!r} is not below {path.parent}; give relative paths")
        return target.read_bytes()
    except OSError as error:
        raise UserError(f"{where}: {value!r}: {error.strerror}; fetch the pictures too") from None
    except (ValueError, RuntimeError) as error:  # a NUL in it, a ring of links
        raise UserError(f"{where}: {value!r} is no path ({error}); give relative paths") from None
