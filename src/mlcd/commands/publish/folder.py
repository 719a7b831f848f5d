"""The published folder: filled beside its place, put there whole, replaced only if it is ours."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from mlcd.commands.publish import card, croissant, shards
from mlcd.commands.publish.licenses import License
from mlcd.commands.publish.source import Source, without_places
from mlcd.data import centroids, hdf5
from mlcd.data.centroids import Centroids
from mlcd.utils import disk, fencing
from mlcd.utils.errors import UserError
from mlcd.utils.files import atomic_path, fsync_directory, sha256_file, write_text
from mlcd.utils.ownership import foreign
from mlcd.utils.records import read_record, write_record

RECORD = "publish.json"
FORMAT = 1
SETTINGS = "settings.yaml"


def ours(output: Path) -> str:
    """Return what a published folder was asked for (hex); '' if nothing, or not all, is there.

    All of it is read, whatever its size. Raises :class:`UserError` if a file in it is not as it was
    published: it is not replaced.
    """
    there = sorted(_files(output))
    if not there:
        return ""
    if RECORD not in there:
        raise foreign(output / there[0])
    record = read_record(output / RECORD, "mlcd publish")
    if record.get("mlcd") != "published" or not isinstance(record.get("files"), dict):
        raise foreign(output / RECORD)
    known: dict[str, dict[str, Any]] = record["files"]
    for name in there:
        path = output / name
        if name == RECORD:
            continue
        if name not in known:
            raise foreign(path)
        same = path.stat().st_size == known[name]["bytes"]
        if not same or sha256_file(path) != known[name]["sha256"]:
            raise UserError(
                f"{path}: was changed since it was published, and is not replaced; name another "
                "output, or move the folder away"
            )
    return str(record["asked"]) if set(known) <= set(there) else ""


def fill(state: Path, source: Source, license: License, asked: str) -> None:
    """Write all files below `state`/new. Shards that a run before has finished are kept."""
    new, parts = state / "new", state / "shards"
    for path in new.glob("data/train-*.parquet"):  # named just before that run was killed
        path.replace(parts / f"{path.name.split('-')[1]}.parquet")
    found = shards.write(parts, source.schema, source.table, source.starts.tolist())
    shutil.rmtree(new, ignore_errors=True)
    with disk.writing(new):
        (new / "data").mkdir(parents=True)
    known = {}
    for number, (path, digest) in enumerate(found):
        known[shards.name(number, len(found))] = digest
        path.replace(new / shards.name(number, len(found)))
    if source.centers is not None:
        _centers(source.centers, new / card.CENTERS)
    mark = "# Settings of the stages that made the labels, as the run was sealed.\n"
    settings = yaml.safe_dump(source.settings, sort_keys=True, allow_unicode=True)
    write_text(new / SETTINGS, mark + settings)
    files = _described(new, known)
    known = {path: digest for path, (digest, _) in files.items()}
    croissant.write(new, source, license, card.title(source), card.summary(source), files)
    card.write(new, source, license, files)
    record = {
        "mlcd": "published",
        "format": FORMAT,
        "asked": asked,
        "run": source.root,
        "license": license.spdx,
        "images": source.rows,
        "num_classes": source.K,
        "labels_per_image": source.l,
        "columns": source.columns,
        "opt_out": source.opt_out,
        "files": {
            path: {"sha256": digest, "bytes": size}
            for path, (digest, size) in _described(new, known).items()
        },
    }
    write_record(new / RECORD, record)


def put(state: Path, output: Path) -> None:
    """Put `state`/new in the place of `output`, which holds nothing of others'.

    There are two renames: what was published before stands in :func:`_aside` between them, and
    :func:`settle` brings it back after a kill.
    """
    ours(output)
    fencing.check()
    old = _aside(output)
    shutil.rmtree(old, ignore_errors=True)
    with disk.writing(output):
        if output.exists():
            output.rename(old)
        (state / "new").rename(output)
    fsync_directory(output.parent)


def end(state: Path, output: Path) -> None:
    """Remove what stood in the place of `output` before, and `state`."""
    shutil.rmtree(_aside(output), ignore_errors=True)
    shutil.rmtree(state, ignore_errors=True)


def settle(output: Path) -> None:
    """Bring back what a :func:`put` that was killed has put aside; for who holds the lease."""
    if (old := _aside(output)).is_dir() and not output.exists():
        old.rename(output)
        fsync_directory(output.parent)


def _aside(output: Path) -> Path:
    return output.parent / "state" / f"{output.name}.old"


def _centers(source: Path, target: Path) -> None:
    """Copy the centers to `target`, as they are unless they name a place on this machine.

    Raises :class:`UserError` if they are damaged.
    """
    found = Centroids(source)
    model = found.described
    if without_places(model) != model or not model:
        # Its name elsewhere would be another, and refused there: it is left out.
        centroids.write(
            target,
            centroid=found.array,
            size=found.sizes,
            objective=found.objective,
            empty=found.empty,
            attributes={"model": "", "embeddings": found.embeddings, "section": found.section},
        )
        return
    with atomic_path(target) as temporary:
        shutil.copyfile(source, temporary)
        hdf5.verified_fingerprint(temporary)


def _described(folder: Path, known: dict[str, str]) -> dict[str, tuple[str, int]]:
    """Return path → SHA-256 and bytes of all files of a folder, sorted; `known`: path → SHA-256."""
    return {
        name: (known.get(name) or sha256_file(folder / name), (folder / name).stat().st_size)
        for name in sorted(_files(folder))
    }


def _files(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*") if folder.is_dir() else ():
        if not path.is_dir() or path.is_symlink():
            yield path.relative_to(folder).as_posix()
