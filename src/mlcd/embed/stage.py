"""The flow of stage embed: decode in order, encode by batch, a part a tar, then one file.

A batch never crosses a tar and its pictures depend on the data alone, because the composition of a
batch moves the last bits of a feature: where a run was cut, or how many workers decode, must not
show in the output. Parts of finished tars lie in the state folder until the output is whole.
"""

from __future__ import annotations

import itertools
import json
import os
import shutil
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlcd import lease
from mlcd.config import Embed
from mlcd.embed.pool import Decoded, DecodePicture, DecodePool, Place
from mlcd.embed.sources import Members, Source, TarSource, open_source
from mlcd.encoders import frozen
from mlcd.encoders.frozen.base import FrozenEncoder
from mlcd.errors import UserError
from mlcd.files import state_dir
from mlcd.progress import LOGGER, progress
from mlcd.sources import code_hash
from mlcd.stores import h5
from mlcd.stores.embeddings import KIND

_PART = "embeddings of one tar"
#: Datasets of a part and of the output.
_ROWS = ("embedding", "key", "tar", "offset", "size")
_FAILED = ("failed_key", "failed_reason")


@dataclass(frozen=True)
class _Batch:
    """Pictures start … stop − 1 of a tar."""

    tar: int
    members: Members
    start: int
    stop: int

    def places(self, path: Path) -> list[Place]:
        rows = slice(self.start, self.stop)
        offsets, sizes = self.members.offset[rows], self.members.size[rows]
        return [(str(path), int(o), int(s)) for o, s in zip(offsets, sizes, strict=True)]


def embed(
    images: str | os.PathLike[str],
    output: str | os.PathLike[str],
    section: Embed,
    *,
    encoder_folder: str | os.PathLike[str] | None = None,
    device: str = "auto",
    workers: int = 1,
    threads: int = 1,
) -> None:
    """Embed every picture of `images` into `output` (docs/formats.md, embeddings).

    With the trained encoder of `encoder_folder`, if one is given, else with `section.model`.

    A picture that cannot be decoded is listed with its reason. Raises :class:`UserError` if more
    than `section.max_failed` of them fail, and for what :func:`mlcd.encoders.frozen.load` and the
    picture store refuse. Cut off at any moment, the same call goes on and ends with the same bytes.
    """
    if min(workers, threads) < 1:
        raise UserError("--workers and --threads: expected at least 1")
    torch.set_num_threads(threads)
    with_text = section.features == "image_text_mean"
    source = open_source(images, captions=with_text)
    if encoder_folder is None:
        encoder = frozen.load(
            section.model, section.pretrained, section.image_size, device, section.precision
        )
    else:
        encoder = frozen.load_trained(encoder_folder, device, section.precision)
    if with_text:
        encoder.encode_texts(["a model without a text tower is refused here, before any work"])
    model = _model(encoder, section)
    # What does not change a feature may change between attempts.
    science = section.model_dump(mode="json", exclude={"max_failed"})
    identity = code_hash("embed"), science, source.fingerprint, model
    with lease.writing(output, *identity) as wanted:
        if wanted:
            state = state_dir(output, *identity)
            _embed(images, source, encoder, section, Path(output), state, workers)


def _embed(
    images: str | os.PathLike[str],
    source: Source,
    encoder: FrozenEncoder,
    section: Embed,
    output: Path,
    state: Path,
    workers: int,
) -> None:
    """Write the parts that `state` lacks, and `output` from all of them."""
    with_text = section.features == "image_text_mean"
    model = _model(encoder, section)
    parts = [state / f"{tar:05d}.h5" for tar in range(len(source.tars))]
    pending = [tar for tar, part in enumerate(parts) if not part.exists()]
    if 0 < len(pending) < len(parts):
        LOGGER.info("embed: %d of %d tars are done", len(parts) - len(pending), len(parts))
    started, pictures = time.monotonic(), 0
    failures = _Failures(images, section.max_failed, source.total)
    for tar, part in enumerate(parts):
        if tar not in pending:
            failures.add(part)
    with DecodePool(DecodePicture(encoder.pixels, section.max_pixels), workers) as pool:
        stream = progress(
            _decoded(source, pending, section.batch_size, pool), label="embed", unit="batch"
        )
        for tar, batches in itertools.groupby(stream, key=lambda item: item[0].tar):
            pictures += _write_part(parts[tar], batches, encoder, with_text=with_text)
            failures.add(parts[tar])
    failures.check()
    attributes: dict[str, str | int] = {
        "chunk": source.chunk,
        "model": json.dumps(model),
        "manifest": source.fingerprint,
    }
    if isinstance(source, TarSource):
        attributes["tars"] = json.dumps([path.name for path in source.tars])
    if with_text:
        attributes["without_caption"] = failures.without_caption
    _assemble(output, parts, encoder.dim, attributes)
    shutil.rmtree(state)
    seconds = time.monotonic() - started
    LOGGER.info(
        "embed: %s: %d pictures embedded, %d failed%s; %.1f pictures/s",
        source.chunk, failures.embedded, failures.failed, failures.table(), pictures / seconds,
    )  # fmt: skip


def _model(encoder: FrozenEncoder, section: Embed) -> dict[str, Any]:
    return {**encoder.identity, "features": section.features}


def _decoded(
    source: Source, tars: list[int], batch_size: int, pool: DecodePool
) -> Iterator[tuple[_Batch, list[Decoded]]]:
    """Iterate over the batches of `tars` in order; a tar's index is read when its turn comes."""
    sent: deque[_Batch] = deque()

    def places() -> Iterator[list[Place]]:
        for tar in tars:
            members = source.members(tar)
            # One batch at least, if empty, so that a tar without pictures has its part too.
            for start in range(0, max(1, len(members)), batch_size):
                stop = min(start + batch_size, len(members))
                sent.append(_Batch(tar, members, start, stop))
                yield sent[-1].places(source.tars[tar])

    for pictures in pool.batches(places()):
        yield sent.popleft(), pictures


def _write_part(
    path: Path,
    batches: Iterable[tuple[_Batch, list[Decoded]]],
    encoder: FrozenEncoder,
    *,
    with_text: bool,
) -> int:
    """Encode the batches of one tar into its part; return the number of pictures."""
    attributes = {"without_caption": 0}
    pictures = 0
    with h5.writing(path, _PART, attributes) as writer:
        for batch, decoded in batches:
            pictures += len(decoded)
            bad = np.array([isinstance(item, str) for item in decoded], dtype=bool)
            rows = np.arange(batch.start, batch.stop)
            reasons = [item for item in decoded if isinstance(item, str)]
            writer.append("failed_key", batch.members.key[rows[bad]])
            writer.append("failed_reason", np.array(reasons, dtype="S32"))
            rows = rows[~bad]
            features = np.zeros((0, encoder.dim), np.float16)
            if len(rows):
                pixels = np.stack([item for item in decoded if not isinstance(item, str)])
                unit = encoder.encode_images(torch.from_numpy(pixels).permute(0, 3, 1, 2))
                if with_text:
                    captions = [batch.members.caption[row] for row in rows]
                    attributes["without_caption"] += sum(not caption for caption in captions)
                    unit = _mean_with_texts(unit, captions, encoder)
                features = unit.numpy().astype(np.float16)
            writer.append("embedding", features)
            writer.append("key", batch.members.key[rows])
            writer.append("tar", np.full(len(rows), batch.tar, np.int32))
            writer.append("offset", batch.members.offset[rows])
            writer.append("size", batch.members.size[rows])
    return pictures


def _mean_with_texts(
    images: torch.Tensor, captions: list[str], encoder: FrozenEncoder
) -> torch.Tensor:
    """Return the unit mean of image and caption features [B, d]; without caption, the image's.

    UNICOM (arXiv 2304.05884) clusters this mean.
    """
    rows = [row for row, caption in enumerate(captions) if caption]
    if not rows:
        return images
    mean = images.clone()
    mean[rows] += encoder.encode_texts([captions[row] for row in rows])
    return torch.nn.functional.normalize(mean, dim=1)


class _Failures:
    """Counts over all parts, held against the largest share of failures."""

    def __init__(
        self, images: str | os.PathLike[str], max_failed: float, total: int | None
    ) -> None:
        self._images = images
        self._max_failed = max_failed
        self._total = total
        self._reasons: Counter[str] = Counter()
        self.embedded = 0
        self.without_caption = 0

    @property
    def failed(self) -> int:
        return self._reasons.total()

    def add(self, part: Path) -> None:
        """Count a finished part. Raises :class:`UserError` once the share is beyond mending."""
        with h5.reading(part, _PART) as file:
            reasons = file["failed_reason"][:]
            self.embedded += len(file["key"])
            self.without_caption += int(file.attrs["without_caption"])
        self._reasons.update(reason.decode() for reason in reasons)
        if self._total is not None:
            self._refuse(self._total)

    def check(self) -> None:
        """Raise :class:`UserError` if too large a share of all pictures failed."""
        self._refuse(self.embedded + self.failed)

    def table(self) -> str:
        """Return ' (damaged 2, crashed 1)', the most frequent first, or nothing."""
        counts = sorted(self._reasons.items(), key=lambda item: (-item[1], item[0]))
        return f" ({', '.join(f'{name} {count}' for name, count in counts)})" if counts else ""

    def _refuse(self, total: int) -> None:
        if self.failed > self._max_failed * total:
            raise UserError(
                f"{self._images}: {self.failed} of {total} pictures failed{self.table()}, more than"
                f" embed.max_failed = {self._max_failed:g} of them; raise it to go on without them "
                "(finished tars are kept), or download the chunk again"
            )


def _assemble(
    output: str | os.PathLike[str], parts: list[Path], dim: int, attributes: dict[str, str | int]
) -> None:
    """Join the parts, in the order of tars, into the output; one part is in memory at a time."""
    width = 9
    for part in parts:
        with h5.reading(part, _PART) as file:
            width = max(width, *(file[name].dtype.itemsize for name in ("key", "failed_key")))
    kinds = {"key": f"S{width}", "failed_key": f"S{width}"}
    empty = {
        "embedding": np.zeros((0, dim), np.float16), "key": np.zeros(0, kinds["key"]),
        "tar": np.zeros(0, np.int32), "offset": np.zeros(0, np.int64),
        "size": np.zeros(0, np.int64), "failed_key": np.zeros(0, kinds["failed_key"]),
        "failed_reason": np.zeros(0, "S32"),
    }  # fmt: skip
    with h5.writing(output, KIND, attributes) as writer:
        for name in (*_ROWS, *_FAILED):
            writer.append(name, empty[name])
        for part in parts:
            with h5.reading(part, _PART) as file:
                for name in (*_ROWS, *_FAILED):
                    rows = file[name][:]
                    writer.append(name, rows.astype(kinds.get(name, rows.dtype)))
