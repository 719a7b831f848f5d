"""Labeled data sets on disk: of which kind a path is, whether it is there, what identifies it.

Light enough for the workflow, which asks this before any work; the images are read by
:mod:`mlcd.data.labeled.samples`.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

from mlcd.config import registry
from mlcd.config.dense import DENSE_TASKS, POINTING, REGIONS, SEGMENTATION
from mlcd.config.labeled import IMAGE_TEXT, Dataset
from mlcd.data.members import is_hidden
from mlcd.data.url_lists import open_parquet
from mlcd.utils.errors import UserError
from mlcd.utils.files import sha256_json
from mlcd.utils.fingerprint import file_identity

#: The data set that comes with scikit-learn.
DIGITS = "sklearn:digits"
#: Sides of a split, and what their folders, files and fields may be called.
SPLITS = ("train", "validation", "test", "query", "gallery")
ALIASES = {"val": "validation", "valid": "validation", "dev": "validation"}
#: Data sets with a mask for each image in a folder per split: kind → split → folder.
MASKED = {
    "ade20k": {"train": "training", "validation": "validation"},
    "coco_stuff": {"train": "train2017", "validation": "val2017"},
}
#: Kinds with masks, and those with boxes of objects.
WITH_MASKS = ("scenes", "voc", *MASKED, "idx", "digits")
WITH_BOXES = ("scenes", "voc", "idx", "digits")
#: Files of a folder of which the first and last MiB count, evenly spread over all.
_LOOKED_INTO = 200


def split_of(word: object) -> str | None:
    """Return which of :data:`SPLITS` a field's value, or a folder's or file's name, means."""
    if not isinstance(word, str):
        return None
    word = ALIASES.get(word.lower(), word.lower())
    return word if word in SPLITS else None


def split_of_file(path: Path) -> str | None:
    """Return the split that a file's name begins with (train-00000-of-00008.parquet)."""
    found = re.match(r"[a-z]+", path.name.lower())
    return split_of(found.group()) if found else None


def split_folders(path: str | os.PathLike[str]) -> dict[str, Path]:
    """Return split → folder, in the order of :data:`SPLITS`."""
    found: dict[str, Path] = {}
    for entry in sorted(Path(path).iterdir()):
        if entry.is_dir() and (split := split_of(entry.name)):
            if split in found:
                raise UserError(f"{entry}: {found[split].name} is there too; keep one of the two")
            found[split] = entry
    return {split: found[split] for split in SPLITS if split in found}


def kind(dataset: Dataset) -> str:
    """Return digits, tar, parquet, idx, split_tars, folders, scenes, voc, ade20k or coco_stuff.

    Raises :class:`UserError`, one line that names data set and path, if nothing is there, or
    nothing of these kinds.
    """
    path = Path(dataset.path)
    where = f"evaluate.datasets: {dataset.name}: {dataset.path}"
    if dataset.path.startswith("sklearn:"):
        if dataset.path != DIGITS:
            raise UserError(f"{where}: scikit-learn's only set here is {DIGITS}")
        return "digits"
    try:
        exists = path.exists()
        names = sorted(entry.name for entry in path.iterdir()) if path.is_dir() else []
    except OSError as error:
        raise UserError(f"{where}: {error.strerror}; give a path that can be read") from None
    names = [name for name in names if not is_hidden(name)]
    if not exists:
        source = registry.registry().get(dataset.name, {}).get("source")
        fix = f"get it from {source}" if source else "give a path that exists"
        raise UserError(f"{where}: no such file or folder; {fix}, or remove the data set")
    if path.is_file():
        if path.suffix in (".tar", ".parquet"):
            return path.suffix[1:]
        raise UserError(
            f"{where}: expected a webdataset .tar, a .parquet or a folder, got "
            f"{path.suffix or 'no'} suffix; see docs/how-to/evaluate.md"
        )
    if (found := _kind_with_masks(path, names)) is not None:
        return found
    if any("idx3-ubyte" in name for name in names):
        return "idx"
    for ending in ("tar", "parquet"):
        if any(name.endswith(f".{ending}") for name in names):
            return ending
    folders = split_folders(path)
    if not folders:
        raise UserError(
            f"{where}: holds neither split folders (train, test) nor .tar, .parquet or idx files; "
            "see docs/how-to/evaluate.md"
        )
    tars = [split for split, folder in folders.items() if files(folder, "tar")]
    if tars and len(tars) < len(folders):
        raise UserError(f"{where}: some split folders hold tars and some do not; give one kind")
    return "split_tars" if tars else "folders"


def _kind_with_masks(path: Path, names: list[str]) -> str | None:
    """Return the kind of a folder of images with masks or objects, None if it is none of these."""
    if {"images", "objects.parquet", "split.parquet"} <= set(names):
        return "scenes"
    if {"JPEGImages", "ImageSets"} <= set(names):
        return "voc"
    for found, folders in MASKED.items():
        wanted = [path / side / name for side in ("images", "annotations") for name in
                  folders.values()]  # fmt: skip
        if all(folder.is_dir() for folder in wanted):
            return found
    return None


def check(dataset: Dataset) -> None:
    """Raise :class:`UserError` as :func:`kind`, or if a task asks for what the kind cannot hold."""
    found = kind(dataset)
    if not os.access(dataset.path, os.R_OK) and found != "digits":
        raise UserError(f"evaluate.datasets: {dataset.name}: {dataset.path}: may not be read")
    _check_fields(dataset, found)
    _check_masks(dataset, found)
    if IMAGE_TEXT in dataset.tasks and found in ("folders", *WITH_MASKS):
        raise UserError(
            f"evaluate.datasets: {dataset.name}: {dataset.path}: no place for captions, which "
            f"{IMAGE_TEXT} needs; pack it as a tar or a parquet, or take the task out"
        )


def _check_masks(dataset: Dataset, found: str) -> None:
    """Raise :class:`UserError` if a task asks for masks, boxes or classes that the kind has not."""
    where = f"evaluate.datasets: {dataset.name}: {dataset.path}"
    for tasks, kinds, what in (
        ([SEGMENTATION], WITH_MASKS, "masks"), ([REGIONS, POINTING], WITH_BOXES, "boxes"),
    ):  # fmt: skip
        asked = [task for task in tasks if task in dataset.tasks]
        if asked and found not in kinds:
            raise UserError(
                f"{where}: no {what}, which {asked[0]} needs; give scenes, VOC or another kind "
                "with them (docs/how-to/evaluate.md), or take the task out"
            )
    rest = [task for task in dataset.tasks if task not in DENSE_TASKS]
    if found in MASKED and (rest or dataset.tags_field):
        raise UserError(
            f"{where}: its images have masks and no class or tag; set tasks to [{SEGMENTATION}], "
            f"and {', '.join([*rest, 'tags_field'])} out"
        )


def parquet_fields(
    dataset: Dataset, path: Path, present: list[str]
) -> tuple[dict[str, str | None], str | None]:
    """Return option → column of a parquet whose columns are `present`, and the split of its rows.

    The split is None where a column says it. Raises :class:`UserError` for a column that is not
    there, or is there twice.
    """
    names = ("image_field", "label_field", "tags_field", "group_field", "caption_field",
             "split_field")  # fmt: skip
    named = {name: getattr(dataset, name) for name in names}
    split = None if dataset.split_field in present else split_of_file(path)
    if split is not None:
        del named["split_field"]
    for option, column in named.items():
        if column is not None and present.count(column) > 1:
            raise UserError(
                f"{path}: two columns are called {column!r}, which evaluate.datasets.{option} "
                "names; rename one of them"
            )
        if column is not None and column not in present:
            raise UserError(
                f"{path}: has no column {column!r}; evaluate.datasets.{option} names it, of "
                f"{', '.join(present)}"
            )
    return named, split


def _check_fields(dataset: Dataset, found: str) -> None:
    """Raise :class:`UserError` if classes or tags are asked for and no field is named for them."""
    if found not in ("tar", "parquet"):
        return
    if found == "parquet" and (paths := files(dataset.path, "parquet")):
        parquet_fields(dataset, paths[0], open_parquet(paths[0]).schema_arrow.names)
    if dataset.label_field is None and dataset.tags_field is None:
        judged = [task for task in dataset.tasks if task not in (IMAGE_TEXT, *DENSE_TASKS)]
        if judged:
            raise UserError(
                f"evaluate.datasets: {dataset.name}: {judged[0]} needs classes or tags; set "
                "label_field or tags_field, or take the task out"
            )


def files(path: str | os.PathLike[str], ending: str) -> list[Path]:
    """Return the file itself, or a folder's files of this ending in the order of their names."""
    target = Path(path)
    if target.is_file():
        return [target]
    return sorted(file for file in target.glob(f"*.{ending}") if not is_hidden(file.name))


def identity(dataset: Dataset) -> str:
    """Return a hash of a data set's files, cheap for any size; copies have the same.

    A file counts with its size and its first and last MiB. Of a folder count all names and sizes,
    and so much of at most 200 files, evenly spread over it: an image changed in a larger folder
    to another of just as many bytes may stay unseen. Images that a parquet names by their paths
    are not looked at; the parquet is. Raises :class:`UserError` as :func:`kind`.
    """
    if kind(dataset) == "digits":
        return DIGITS
    path = Path(dataset.path)
    if path.is_file():
        return file_identity(str(path))
    entries = list(files_below(path))
    # Names that are no UTF-8 have none of their own in JSON.
    names = [os.fsencode(entry.relative_to(path)).decode(errors="backslashreplace") for entry in
             entries]  # fmt: skip
    sizes = [[name, entry.stat().st_size] for name, entry in zip(names, entries, strict=True)]
    step = max(1, -(-len(entries) // _LOOKED_INTO))
    return sha256_json([sizes, [file_identity(str(entry)) for entry in entries[::step]]])[:16]


def files_below(path: Path) -> Iterator[Path]:
    """Yield a folder's files at any depth, in order, as readers see them.

    Hidden ones are left out, and links that lead to nothing. A link to a folder that it lies in is
    not followed: it would have no end.
    """
    above: dict[Path, set[tuple[int, int]]] = {}
    for name, folders, names in os.walk(path, followlinks=True):
        folder = Path(name)
        about, before = folder.stat(), above.get(folder.parent, set())
        here = about.st_dev, about.st_ino
        if here in before:
            folders.clear()
            continue
        above[folder] = before | {here}
        folders[:] = sorted(name for name in folders if not is_hidden(name))
        for entry in (folder / name for name in sorted(names) if not is_hidden(name)):
            if entry.exists():
                yield entry
