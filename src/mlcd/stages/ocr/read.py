"""Part `text`: read the text in the images of a chunk, in worker processes, with saved parts."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

import numpy as np

from mlcd.config import Ocr
from mlcd.data import hdf5, labels
from mlcd.data.decode_pool import DecodedBatch, DecodePool, ImageLocation
from mlcd.data.embeddings import Embeddings
from mlcd.data.image_store import ImageStore
from mlcd.data.labels import Labels
from mlcd.data.ocr import KIND, Line, Text, columns
from mlcd.launch import lease
from mlcd.stages.ocr import engine
from mlcd.utils.errors import UserError
from mlcd.utils.files import state_dir
from mlcd.utils.fingerprint import code_hash
from mlcd.utils.logging import LOGGER, progress
from mlcd.utils.ownership import claim

#: Images of a part, which is what a job that is cut off loses at most, and of a batch.
_PART, _BATCH = 512, 32
_COLUMNS = ("row", "confidence", "box", "bytes", "text")


def read_text(
    rows: str | os.PathLike[str],
    images: str | os.PathLike[str],
    output: str | os.PathLike[str],
    section: Ocr,
    *,
    workers: int = 1,
) -> None:
    """Write the lines of text in the images of one chunk (formats.md).

    `rows`: the chunk's embeddings, or own labels, whose rows the images are. An image that cannot
    be read has no lines, and is counted. Cut off at any moment, the same call continues and ends
    with the same bytes, for any number of `workers`. Raises :class:`UserError`, also if more than
    `section.max_failed` of the images cannot be read.
    """
    if workers < 1:
        raise UserError("--threads: expected at least 1")
    claim(output)
    source, store = open_rows(rows), ImageStore(images)
    manifest = source.manifest if isinstance(source, Labels) else source.attributes.get("manifest")
    if manifest != store.fingerprint:
        raise UserError(
            f"{source.path}: made from other images than {store.folder} now holds; rerun the stage "
            f"that wrote it for chunk {store.chunk}"
        )
    reader = engine.identity()
    identity = code_hash("ocr"), section.for_text(), source.fingerprint, reader
    with lease.writing(output, *identity) as wanted:
        if wanted:
            attributes: dict[str, str | int] = {
                "chunk": store.chunk,
                "manifest": store.fingerprint,
                "embeddings": source.fingerprint,
                "images": source.n,
                "engine": json.dumps(reader, sort_keys=True),
                "section": section.for_text(),
            }
            state = state_dir(output, *identity)
            _read(source, store, Path(output), section, state, workers, attributes)


def open_rows(path: str | os.PathLike[str]) -> Embeddings | Labels:
    """Open what says where the images of a chunk lie. Raises :class:`UserError`."""
    attributes, _ = hdf5.attributes(path)
    return Labels(path) if attributes.get("kind") == labels.KIND else Embeddings(path)


def _read(
    source: Embeddings | Labels,
    store: ImageStore,
    output: Path,
    section: Ocr,
    state: Path,
    workers: int,
    attributes: dict[str, str | int],
) -> None:
    """Write the parts that `state` lacks, and `output` from all of them."""
    parts = {start: state / f"{start:010d}.h5" for start in range(0, source.n, _PART)}
    pending = [start for start, path in parts.items() if not path.exists()]
    if 0 < len(pending) < len(parts):
        LOGGER.info("ocr: %d of %d parts are done", len(parts) - len(pending), len(parts))
    batches = [
        range(first, min(first + _BATCH, start + _PART, source.n))
        for start in pending
        for first in range(start, min(start + _PART, source.n), _BATCH)
    ]
    count, began = sum(map(len, batches)), time.monotonic()
    failures = _Failures(store.chunk, source.n, section.max_failed)
    failures.before = sum(Text(path).failed for path in parts.values() if path.exists())
    failures.check()
    with DecodePool(engine.ReadLines(section.side, section.max_pixels), workers) as pool:
        read = zip(batches, pool.batches(_locations(source, store, batches)), strict=True)
        shown = progress(
            read, total=source.n, initial=source.n - count, label="ocr", unit="image",
            size=lambda item: len(item[0]),
        )  # fmt: skip
        for number, items in itertools.groupby(shown, key=lambda item: item[0].start // _PART):
            _write_part(parts[number * _PART], items, attributes, failures)
    lines, failed = _assemble(output, list(parts.values()), attributes)
    shutil.rmtree(state)
    if failed:
        LOGGER.warning("ocr: %s: %d images could not be read%s", store.chunk, failed, failures)
    LOGGER.info(
        "ocr: %s: %d lines of text in %d images; %.1f images/s",
        store.chunk, lines, source.n, count / max(1e-9, time.monotonic() - began),
    )  # fmt: skip


def _locations(
    source: Embeddings | Labels, store: ImageStore, batches: list[range]
) -> Iterator[list[ImageLocation]]:
    """Iterate over where the images of each batch of rows lie."""
    places, tars = source.places(), [str(path) for path in store.tars]
    for batch in batches:
        rows = slice(batch.start, batch.stop)
        names = [tars[tar] for tar in places.tar[rows].tolist()]
        spans = (column[rows].tolist() for column in places[1:])
        yield list(zip(names, *spans, strict=True))


def _write_part(
    path: Path,
    items: Iterable[tuple[range, DecodedBatch]],
    attributes: dict[str, str | int],
    failures: _Failures,
) -> None:
    """Write the lines of one part's batches, and count why images have none.

    Nothing is written where too many fail: whoever fixes it reads them again.
    """
    part: list[tuple[int, list[Line]]] = []
    before = failures.total
    for batch, decoded in items:
        # Of this decoder it is lines in the place of pixels.
        for row, found in zip(batch, cast("list[list[Line] | str]", decoded.found), strict=True):
            if isinstance(found, str):
                failures.reasons[found] += 1
            else:
                part.append((row, found))
        failures.check()
    hdf5.write(path, KIND, columns(part), {**attributes, "failed": failures.total - before})


class _Failures:
    """Images that could not be read: `before` in finished parts, `reasons` in this call."""

    def __init__(self, chunk: str, images: int, most: float) -> None:
        self._chunk, self._images, self._most = chunk, images, most
        self.before = 0
        self.reasons: Counter[str] = Counter()

    def __str__(self) -> str:
        words = ", ".join(f"{word} {count}" for word, count in self.reasons.most_common())
        return f" ({words})" if words else ""

    @property
    def total(self) -> int:
        return self.before + self.reasons.total()

    def check(self) -> None:
        """Raise :class:`UserError` if they are too many."""
        if self.total > self._most * self._images:
            raise UserError(
                f"ocr.max_failed: {self.total} of the {self._images} images of chunk {self._chunk} "
                f"could not be read{self}, more than {self._most:g} of them; see the messages "
                "above, or raise it to continue without them"
            )


def _assemble(output: Path, parts: list[Path], attributes: dict[str, str | int]) -> tuple[int, int]:
    """Join the parts into the output; return lines and failed images."""
    files = [Text(part) for part in parts]
    failed = sum(file.failed for file in files)
    with hdf5.writing(output, KIND, {**attributes, "failed": failed}) as writer:
        # A chunk without images has its datasets too.
        for name, none in columns([]).items():
            writer.append(name, none)
        for part in parts:
            with hdf5.reading(part, KIND) as file:
                for name in _COLUMNS:
                    writer.append(name, np.asarray(hdf5.whole(file, name)))
    return sum(file.lines for file in files), failed
