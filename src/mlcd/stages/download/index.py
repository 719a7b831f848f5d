"""Index a chunk of images that are on disk: look at each, store where it lies, copy nothing.

The result is an image store as any other (formats.md, `results/images`). Its rows are cut into
blocks of download.rows_per_tar. A block has an index in the place of a tar, unless its images must
be stored: because a size is asked for, or because they lie in a parquet, where no image can be read
without all those around it.

A finished block leaves its lines of the table in the state folder; a killed run continues with the
next one.
"""

from __future__ import annotations

import itertools
import json
import tarfile
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

import pyarrow as pa
import pyarrow.parquet as pq

from mlcd.config import Download
from mlcd.data import pointers
from mlcd.data.decode_pool import DecodePool
from mlcd.data.image_store import MANIFEST, TABLE, index_name, key_of_row, tar_name
from mlcd.data.local_table import LocalImage, LocalTable
from mlcd.stages.download.look import Look, Seen, Tasks, read
from mlcd.stages.download.seal import (
    GROUP,
    SCHEMA,
    add_member,
    described,
    extension,
    tars_of,
    write_manifest,
)
from mlcd.utils.errors import UserError
from mlcd.utils.files import atomic_path
from mlcd.utils.logging import progress

#: The table of images on disk has one more column.
_SCHEMA = SCHEMA.append(pa.field("class", pa.string()))
_BATCH = 64
_BLOCK = b"block"


class _Batch(NamedTuple):
    """Some images of a block, from row `start` of the chunk; `copy` is of the whole block."""

    block: int
    start: int
    images: list[LocalImage]
    copy: bool


def index(
    table: LocalTable,
    target: Path,
    section: Download,
    request: str,
    state: Path,
    *,
    processes: int,
) -> dict[str, Any]:
    """Write the blocks that `state` lacks, then table and manifest to `target`; return the latter.

    Raises :class:`UserError` if fewer rows are good than `section.min_success`.
    """
    before = tars_of(target / MANIFEST)
    count = -(-table.rows // section.rows_per_tar)
    pending = {block for block in range(count) if not _is_done(state, target, block)}
    tasks = Tasks(table.root, section.max_bytes)
    look = Look(section, store=section.image_size is not None or _has_parquet(table))
    with DecodePool(look, processes, reader=read) as pool:
        stream = progress(
            _looked_at(table, pending, section, tasks, pool),
            total=len(pending) * -(-section.rows_per_tar // _BATCH), label="index", unit="batch",
        )  # fmt: skip
        for block, group in itertools.groupby(stream, key=lambda item: item[0].block):
            _write_block(target, state, block, group, tasks)
    counts = _counts(state, count)
    _require_success(target, table, counts, section)
    (target / MANIFEST).unlink(missing_ok=True)
    tars = [_block_of(state, block) for block in range(count)]
    with (
        atomic_path(target / TABLE) as temporary,
        pq.ParquetWriter(temporary, _SCHEMA) as writer,
    ):
        for lines in _groups(state, count):
            writer.write_table(lines)
    asked = json.loads(section.for_images())
    return write_manifest(target, table, counts, tars, before, request, asked)


def _has_parquet(table: LocalTable) -> bool:
    return any(image.kind == "parquet" for image in table.images())


def _looked_at(
    table: LocalTable, pending: set[int], section: Download, tasks: Tasks, pool: DecodePool
) -> Iterator[tuple[_Batch, list[Seen | str]]]:
    """Iterate over the batches of pending blocks in order, with what was seen of each image."""
    sent: deque[_Batch] = deque()
    size = section.rows_per_tar

    def places() -> Iterator[list[Any]]:
        images = table.images()
        for block in itertools.count():
            rows = list(itertools.islice(images, size))
            if not rows:
                return
            if block not in pending:
                continue
            copy = section.image_size is not None or any(row.kind == "parquet" for row in rows)
            for start in range(0, len(rows), _BATCH):
                part = rows[start : start + _BATCH]
                sent.append(_Batch(block, block * size + start, part, copy))
                yield [tasks(image) for image in part]

    for decoded in pool.batches(places()):
        yield sent.popleft(), cast("list[Seen | str]", decoded.found)


def _write_block(
    target: Path,
    state: Path,
    block: int,
    batches: Iterable[tuple[_Batch, list[Seen | str]]],
    tasks: Tasks,
) -> None:
    """Write the tar or the index of a block, then its lines."""
    (first, _), batches = _peeked(batches)
    path = target / (tar_name(block) if first.copy else index_name(block))
    lines: list[dict[str, Any]] = []
    with atomic_path(path) as temporary:
        store: _Tar | _Index = _Tar(temporary) if first.copy else _Index(temporary, tasks)
        with store:
            for batch, found in batches:
                pairs = zip(batch.images, found, strict=True)
                for row, (image, seen) in enumerate(pairs, batch.start):
                    line = _line(row, image, seen)
                    if isinstance(seen, Seen):
                        line |= {"tar": block, "offset": store.add(line, image, seen)}
                    lines.append(line)
    about = json.dumps(described(path, lines))
    table = pa.Table.from_pylist(lines, _SCHEMA)
    table = table.replace_schema_metadata({**(_SCHEMA.metadata or {}), _BLOCK: about.encode()})
    with atomic_path(state / f"{block:05d}.parquet") as temporary:
        pq.write_table(table, temporary)


def _peeked(items: Iterable[Any]) -> tuple[Any, Iterator[Any]]:
    """Return the first item, and all."""
    iterator = iter(items)
    first = next(iterator)
    return first, itertools.chain([first], iterator)


class _Tar:
    """A tar of images, as download writes them."""

    def __init__(self, path: Path) -> None:
        self._tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._tar.close()

    def add(self, line: dict[str, Any], image: LocalImage, seen: Seen) -> int:
        """Append an image and its JSON; return the offset of its bytes."""
        assert seen.data is not None, "an image to be stored came without its bytes"
        offset = add_member(self._tar, f"{line['key']}.{extension(seen.data)}", seen.data)
        names = ("key", "url", "caption", "sha256", "width", "height", "class")
        text = json.dumps({name: line[name] for name in names}, ensure_ascii=False)
        add_member(self._tar, f"{line['key']}.json", text.encode())
        return offset


class _Index:
    """An index: :mod:`mlcd.data.pointers`."""

    def __init__(self, path: Path, tasks: Tasks) -> None:
        self._tasks = tasks
        self._file: BinaryIO = path.open("wb")
        self._file.write(pointers.header(tasks.root))

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, line: dict[str, Any], image: LocalImage, seen: Seen) -> int:
        """Append the line of an image; return the byte at which it begins."""
        offset = self._file.tell()
        self._file.write(pointers.record(self._tasks.pointer(image), seen.sha256))
        return offset


def _line(row: int, image: LocalImage, seen: Seen | str) -> dict[str, Any]:
    good = seen if isinstance(seen, Seen) else None
    return {
        "row": row, "key": key_of_row(row), "url": image.place, "caption": image.caption,
        "status": "success" if good else "failed", "reason": "" if good else seen, "passes": 1,
        "tar": -1, "offset": -1, "size": good.size if good else 0,
        "sha256": good.sha256 if good else "", "width": good.width if good else 0,
        "height": good.height if good else 0, "class": image.folder,
    }  # fmt: skip


def _block_of(state: Path, block: int) -> dict[str, Any]:
    """Return the manifest's entry of a finished block."""
    metadata = pq.read_schema(state / f"{block:05d}.parquet").metadata
    entry: dict[str, Any] = json.loads(metadata[_BLOCK])
    return entry


def _is_done(state: Path, target: Path, block: int) -> bool:
    if not (state / f"{block:05d}.parquet").exists():
        return False
    entry = _block_of(state, block)
    path = target / entry["name"]
    return bool(path.exists() and path.stat().st_size == entry["bytes"])


def _counts(state: Path, count: int) -> dict[str, int]:
    """Return the number of rows by reason, `success` first, then by the alphabet."""
    found: Counter[str] = Counter()
    for block in range(count):
        reasons = pq.read_table(state / f"{block:05d}.parquet", columns=["reason"])["reason"]
        found.update(reasons.to_pylist())
    counts = {"success": found.pop("", 0)} | {name: found[name] for name in sorted(found)}
    return {name: rows for name, rows in counts.items() if rows}


def _groups(state: Path, count: int) -> Iterator[pa.Table]:
    """Iterate over the lines of all blocks, some blocks at a time."""
    held: list[pa.Table] = []
    for block in range(count):
        lines = pq.read_table(state / f"{block:05d}.parquet")
        held.append(lines.replace_schema_metadata(_SCHEMA.metadata))
        if sum(map(len, held)) >= GROUP or block == count - 1:
            yield pa.concat_tables(held).combine_chunks()
            held = []


def _require_success(
    target: Path, table: LocalTable, counts: dict[str, int], section: Download
) -> None:
    good = counts.get("success", 0)
    if good >= section.min_success * table.rows:
        return
    reasons = ", ".join(f"{name} {rows}" for name, rows in counts.items())
    raise UserError(
        f"{target}: {good} of {table.rows} images are good ({good / table.rows:.1%}), and "
        f"download.min_success is {section.min_success:g}: {reasons}; check the images below "
        f"{table.root}, or lower download.min_success"
    )
