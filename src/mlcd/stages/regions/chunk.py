"""The flow of stage regions: boxes and crops by image, encoded by batch, a part per block of rows.

Workers decode, find boxes and cut them out while the encoder works. Batches are filled over images
in the order of rows, and none crosses a block of rows, because the composition of a batch moves the
last bits of a feature: where a run was cut, or how many workers there are, must not show. Parts of
finished blocks lie in the state folder until the output is whole.
"""

from __future__ import annotations

import argparse
import json
import shutil
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch

from mlcd.config import Embed, Regions
from mlcd.data import hdf5
from mlcd.data.decode_pool import DecodePool
from mlcd.data.embeddings import KIND, Embeddings, unusable
from mlcd.data.image_store import ImageStore
from mlcd.data.region_store import BOX, IMAGE, IMAGE_SIZE
from mlcd.launch import lease
from mlcd.models import frozen
from mlcd.models.frozen.base import FrozenEncoder
from mlcd.stages.regions.given import boxes_of, parts_of
from mlcd.stages.regions.proposals import Asked, FindRegions, Found, ReadAsked
from mlcd.training import forward
from mlcd.utils.errors import UserError
from mlcd.utils.files import state_dir
from mlcd.utils.fingerprint import code_hash, file_identity
from mlcd.utils.logging import LOGGER, progress
from mlcd.utils.one_behind import one_behind
from mlcd.utils.ownership import claim

_PART = "regions of one block of rows"
#: Rows of the embeddings whose regions make a part, and images that workers are given at once.
_BLOCK, _IMAGES = 1024, 8


class _Crop(NamedTuple):
    """A region: its image's row of the embeddings and size, box float32 [4], pixels [H, W, 3]."""

    image: int
    size: tuple[int, int]
    box: np.ndarray
    pixels: np.ndarray


@dataclass
class _Counts:
    """What became of the images of finished parts. `refused`: regions without a direction."""

    images: int = 0
    regions: int = 0
    without: int = 0
    refused: int = 0
    reasons: Counter[str] = field(default_factory=Counter)

    def add(self, part: Path) -> None:
        with hdf5.reading(part, _PART) as file:
            images, regions = int(file.attrs["images"]), file[IMAGE][:]
            self.reasons.update(word.decode() for word in file["failed_reason"][:])
            self.refused += int(file.attrs["refused"])
            failed = len(file["failed_row"])
        self.images += images
        self.regions += len(regions)
        self.without += images - failed - len(np.unique(regions))


def write_regions(
    arguments: argparse.Namespace, section: Regions, embed: Embed, workers: int
) -> None:
    """Write the regions of one chunk to `arguments.output` (formats.md, regions).

    Raises :class:`UserError` if the files do not belong together, if the embeddings are not of the
    encoder of section `embed`, and if more than `section.max_failed` of the images fail. Cut off at
    any moment, the same call continues and ends with the same bytes.
    """
    if min(workers, arguments.threads) < 1:
        raise UserError("--workers and --threads: expected at least 1")
    claim(arguments.output)
    torch.set_num_threads(arguments.threads)
    store, embeddings = ImageStore(arguments.images), Embeddings(arguments.embeddings)
    if embeddings.attributes.get("manifest") != store.fingerprint:
        raise UserError(
            f"{embeddings.path}: made from other images than {store.folder} now holds; "
            f"rerun embed for chunk {store.chunk}"
        )
    encoder = frozen.load(
        embed.model, embed.pretrained, embed.image_size, arguments.device, embed.precision
    )
    model = {**encoder.identity, "features": embed.features}
    if embed.features != "image" or embeddings.model != model:
        raise UserError(
            f"{embeddings.path}: not image features of {embed.model} with this preprocessing, so "
            "regions would not be comparable; give the section embed that it was made with"
        )
    if encoder.device.type == "cuda":
        forward.check_batch(encoder, embed.batch_size, forward.free(encoder.device))
    parts = parts_of(arguments, section)
    read = [[file_identity(part.path), part.start, part.stop] for part in parts]
    identity = [
        code_hash("regions"), section.for_regions(), embed.for_encoder(), embeddings.fingerprint,
        model, read, arguments.tar_keys,
    ]  # fmt: skip
    with lease.writing(arguments.output, *identity) as wanted:
        if not wanted:
            return
        given = boxes_of(arguments, section, parts, embeddings, store) if parts else None
        decoder = FindRegions(section, encoder.pixels, embed.max_pixels)
        work = _Work(store, embeddings, encoder, decoder, given, embed.batch_size)
        state = state_dir(arguments.output, *identity)
        finished = work.parts(state, workers)
        attributes = {
            "chunk": store.chunk,
            "model": json.dumps(model),
            "manifest": store.fingerprint,
            "embeddings": embeddings.fingerprint,
            "section": section.for_regions(),
            "tables": json.dumps([[Path(part.path).name, file_identity(part.path)]
                                  for part in parts]),
        }  # fmt: skip
        work.assemble(Path(arguments.output), finished, attributes)
        shutil.rmtree(state)


class _Work:
    """One chunk: which of its images are looked at, and by what."""

    def __init__(
        self,
        store: ImageStore,
        embeddings: Embeddings,
        encoder: FrozenEncoder,
        decoder: FindRegions,
        given: list[np.ndarray] | None,
        batch_size: int,
    ) -> None:
        self._store, self._embeddings, self._encoder = store, embeddings, encoder
        self._decoder, self._given, self._batch_size = decoder, given, batch_size
        self._places = embeddings.places()

    def parts(self, state: Path, workers: int) -> list[Path]:
        """Write the parts that `state` lacks; return all. Raises :class:`UserError`."""
        n = self._embeddings.n
        blocks = [range(start, min(start + _BLOCK, n)) for start in range(0, n, _BLOCK)]
        paths = [state / f"{number:05d}.h5" for number in range(len(blocks))]
        counts, started = _Counts(), time.monotonic()
        for path in paths:
            if path.exists():
                counts.add(path)
        # Else what was refused at its end would be taken as it is by the next attempt.
        self._refuse(counts, n, state)
        done = counts.images
        if done:
            LOGGER.info("regions: %d of %d images are done", done, n)
        missing = [number for number, path in enumerate(paths) if not path.exists()]
        with DecodePool(self._decoder, workers, reader=ReadAsked()) as pool:
            asked = (block for number in missing for block in self._asked(blocks[number]))
            found = (item for batch in pool.batches(asked) for item in batch.found)
            stream = progress(found, total=n, initial=done, label="regions", unit="image")
            for number in missing:
                rows = zip(blocks[number], stream, strict=False)
                self._write_part(paths[number], cast("_Rows", rows), len(blocks[number]))
                counts.add(paths[number])
                self._refuse(counts, n, state)
        told = "".join(f", {word} {count}" for word, count in counts.reasons.most_common())
        LOGGER.info(
            "regions: %s: %d regions of %d images, %d without any%s%s; %.1f images/s",
            self._store.chunk, counts.regions, n, counts.without,
            f", {counts.refused} regions without a direction" if counts.refused else "", told,
            (n - done) / (time.monotonic() - started),
        )  # fmt: skip
        return paths

    def _asked(self, rows: range) -> Iterator[list[Asked]]:
        """Iterate over the images of `rows`, some at a time."""
        columns = [column[rows.start : rows.stop].tolist() for column in self._places]
        for start in range(0, len(rows), _IMAGES):
            asked = []
            for row in range(start, min(start + _IMAGES, len(rows))):
                tar, offset, size, digest = (column[row] for column in columns)
                given = self._given[rows[row]] if self._given else None
                asked.append(Asked((str(self._store.tars[tar]), offset, size, digest), given))
            yield asked

    def _write_part(self, path: Path, found: _Rows, images: int) -> None:
        """Encode the regions of a block of rows into its part."""
        failed: list[tuple[int, str]] = []
        attributes = {"images": images, "refused": 0}
        with hdf5.writing(path, _PART, attributes) as writer:
            _append(writer, np.zeros((0, self._encoder.dim)), [])
            for batch, features in one_behind(self._encoded(_crops(found, failed))):
                unit = features().numpy()
                good = [not reason for reason in unusable(unit)]
                attributes["refused"] += len(good) - sum(good)
                kept = [crop for crop, is_good in zip(batch, good, strict=True) if is_good]
                _append(writer, unit[good], kept)
            writer.append("failed_row", np.array([row for row, _ in failed], np.int64))
            writer.append("failed_reason", np.array([word for _, word in failed], "S32"))

    def _encoded(self, crops: Iterable[_Crop]) -> Iterator[_Encoded]:
        """Iterate over full batches of crops; each is being encoded when it comes."""
        batch: list[_Crop] = []
        for crop in crops:
            batch.append(crop)
            if len(batch) == self._batch_size:
                yield batch, self._start(batch)
                batch = []
        if batch:
            yield batch, self._start(batch)

    def _start(self, batch: list[_Crop]) -> Callable[[], torch.Tensor]:
        pixels = torch.from_numpy(np.stack([crop.pixels for crop in batch]))
        return self._encoder.start_images(pixels.permute(0, 3, 1, 2))

    def _refuse(self, counts: _Counts, total: int, state: Path) -> None:
        most = self._decoder.section.max_failed
        if counts.reasons.total() > most * total:
            words = ", ".join(f"{word} {count}" for word, count in counts.reasons.most_common())
            raise UserError(
                f"{self._embeddings.path}: of {total} images {counts.reasons.total()} failed "
                f"({words}), more than regions.max_failed = {most:g} of them; raise it to resume "
                f"without them (finished parts are kept in {state})"
            )

    def assemble(self, output: Path, parts: list[Path], attributes: dict[str, str]) -> None:
        """Join the parts, in order, into the output; one part is in memory at a time."""
        keys = self._embeddings.keys()
        with hdf5.writing(output, KIND, attributes) as writer:
            _append(writer, np.zeros((0, self._encoder.dim)), [])
            nothing = np.zeros(0, np.int64)
            self._append_places(writer, nothing, keys)
            _append_failed(writer, keys[nothing], np.zeros(0, "S32"))
            for part in parts:
                with hdf5.reading(part, _PART) as file:
                    for name in ("embedding", BOX, IMAGE, IMAGE_SIZE):
                        writer.append(name, hdf5.whole(file, name))
                    self._append_places(writer, hdf5.whole(file, IMAGE), keys)
                    rows, reasons = (hdf5.whole(file, f"failed_{of}") for of in ("row", "reason"))
                    _append_failed(writer, keys[rows], reasons)

    def _append_places(self, writer: hdf5.Writer, rows: np.ndarray, keys: np.ndarray) -> None:
        """Append the key and the place of the images `rows`, one for each region."""
        writer.append("key", keys[rows])
        for name, column in zip(self._places._fields, self._places, strict=True):
            writer.append(name, column[rows])


#: Rows of the embeddings, each with its regions, or with the reason why it could not be looked at.
_Rows = Iterable[tuple[int, Found | str]]
#: A batch of crops, and what gives their features float32 [B, d].
_Encoded = tuple[list[_Crop], Callable[[], torch.Tensor]]


def _crops(found: _Rows, failed: list[tuple[int, str]]) -> Iterator[_Crop]:
    """Iterate over all regions; images that cannot be looked at go into `failed`."""
    for row, regions in found:
        if isinstance(regions, str):
            failed.append((row, regions))
            continue
        for box, pixels in zip(regions.box, regions.pixels, strict=True):
            yield _Crop(row, regions.size, box, pixels)


def _append(writer: hdf5.Writer, unit: np.ndarray, crops: list[_Crop]) -> None:
    """Append regions: their features [n, d], boxes and images."""
    writer.append("embedding", unit.astype(np.float16))
    boxes = np.array([crop.box for crop in crops], np.float32)
    writer.append(BOX, boxes.reshape(-1, 4))
    writer.append(IMAGE, np.array([crop.image for crop in crops], np.int64))
    writer.append(IMAGE_SIZE, np.array([crop.size for crop in crops], np.int32).reshape(-1, 2))


def _append_failed(writer: hdf5.Writer, keys: np.ndarray, reasons: np.ndarray) -> None:
    writer.append("failed_key", keys)
    writer.append("failed_reason", reasons)
