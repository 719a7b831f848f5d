"""The flow of stage embed: decode in order, encode by batch, a part per tar, then one file.

Workers decode while the encoder works, and a GPU is given a batch before the features of the one
before it are written.

A batch never crosses a tar and its images depend on the data alone, because the composition of a
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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mlcd.config import Embed
from mlcd.data import hdf5
from mlcd.data.decode_pool import DecodedBatch, DecodeImage, DecodePool, ImageLocation
from mlcd.data.embeddings import KIND, NOT_FINITE, unusable
from mlcd.launch import lease
from mlcd.models import frozen
from mlcd.models.frozen.base import FrozenEncoder
from mlcd.stages.embed.sources import Members, Source, TarSource, open_source
from mlcd.training import forward
from mlcd.utils.errors import UserError
from mlcd.utils.files import state_dir
from mlcd.utils.fingerprint import code_hash
from mlcd.utils.logging import LOGGER, progress
from mlcd.utils.one_behind import one_behind
from mlcd.utils.ownership import claim

_PART = "embeddings of one tar"
#: Datasets of a part and of the output.
_ROWS = ("embedding", "key", "tar", "offset", "size", "digest")
_FAILED = ("failed_key", "failed_reason")


@dataclass(frozen=True)
class _Batch:
    """Images start … stop − 1 of a tar."""

    tar: int
    members: Members
    start: int
    stop: int

    def places(self, path: Path) -> list[ImageLocation]:
        rows = slice(self.start, self.stop)
        columns = (self.members.offset, self.members.size, self.members.digest)
        places = zip(*(column[rows].tolist() for column in columns), strict=True)
        return [(str(path), *place) for place in places]


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
    """Embed every image of `images` into `output` (docs/reference/formats.md, embeddings).

    With the trained encoder of `encoder_folder`, if one is given, else with `section.model`.

    An image that cannot be decoded, or of which the encoder makes nothing (`zero_embedding`,
    `not_finite`), is listed with its reason. Raises :class:`UserError` if more
    than `section.max_failed` of them fail, and for what :func:`mlcd.models.frozen.load` and the
    image store refuse. Cut off at any moment, the same call continues and ends with the same bytes.
    """
    if min(workers, threads) < 1:
        raise UserError("--workers and --threads: expected at least 1")
    claim(output)
    torch.set_num_threads(threads)
    with_text = section.features == "image_text_mean"
    source = open_source(images, captions=with_text)
    if encoder_folder is None:
        encoder = frozen.load(
            section.model, section.pretrained, section.image_size, device, section.precision
        )
    else:
        encoder = frozen.load_trained(encoder_folder, device, section.precision)
    if encoder.device.type == "cuda":
        forward.check_batch(encoder, section.batch_size, forward.free(encoder.device))
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
    started, count = time.monotonic(), 0
    failures = _Failures(images, section.max_failed, source.total)
    for tar, part in enumerate(parts):
        if tar not in pending:
            failures.add(part)
    decoder = DecodeImage(encoder.pixels, section.max_pixels)
    ring = (section.batch_size, *encoder.pixels.size)
    with DecodePool(decoder, workers, ring=ring) as pool:
        stream = progress(
            _decoded(source, pending, section.batch_size, pool),
            total=source.total, initial=failures.embedded + failures.failed, label="embed",
            unit="image", size=lambda item: item[0].stop - item[0].start,
        )  # fmt: skip
        for tar, batches in itertools.groupby(stream, key=lambda item: item[0].tar):
            count += _write_part(parts[tar], batches, encoder, with_text=with_text)
            failures.add(parts[tar])
    failures.check()
    seen = failures.embedded + failures.failed
    if source.total not in (None, seen):
        raise UserError(
            f"{images}: {source.total} images arrived, but {seen} were embedded or failed; remove "
            f"{state} and rerun"
        )
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
        "embed: %s: %d images embedded, %d failed%s; %.1f images/s",
        source.chunk, failures.embedded, failures.failed, failures.table(), count / seconds,
    )  # fmt: skip


def _model(encoder: FrozenEncoder, section: Embed) -> dict[str, Any]:
    return {**encoder.identity, "features": section.features}


def _decoded(
    source: Source, tars: list[int], batch_size: int, pool: DecodePool
) -> Iterator[tuple[_Batch, DecodedBatch]]:
    """Iterate over the batches of `tars` in order; a tar's index is read when its turn comes."""
    sent: deque[_Batch] = deque()

    def places() -> Iterator[list[ImageLocation]]:
        for tar in tars:
            members = source.members(tar)
            # One batch at least, if empty, so that a tar without images has its part too.
            for start in range(0, max(1, len(members)), batch_size):
                stop = min(start + batch_size, len(members))
                sent.append(_Batch(tar, members, start, stop))
                yield sent[-1].places(source.tars[tar])

    for decoded in pool.batches(places()):
        yield sent.popleft(), decoded


def _write_part(
    path: Path,
    batches: Iterable[tuple[_Batch, DecodedBatch]],
    encoder: FrozenEncoder,
    *,
    with_text: bool,
) -> int:
    """Encode the batches of one tar into its part; return the number of images."""
    attributes = {"without_caption": 0}
    count = 0
    with hdf5.writing(path, _PART, attributes) as writer:
        for batch, reasons, features in one_behind(_encoded(batches, encoder)):
            count += len(reasons)
            good = [place for place, reason in enumerate(reasons) if not reason]
            rows = np.arange(batch.start, batch.stop)
            whole = np.zeros((0, encoder.dim), np.float32)
            if good:
                unit = features()
                if with_text:
                    captions = [batch.members.caption[row] for row in rows[good]]
                    attributes["without_caption"] += sum(not caption for caption in captions)
                    unit = _mean_with_texts(unit, captions, encoder)
                whole = unit.numpy()
                for place, reason in zip(good, unusable(whole), strict=True):
                    reasons[place] = reason
            kept = [not reasons[place] for place in good]
            bad = np.array([bool(reason) for reason in reasons], dtype=bool)
            writer.append("failed_key", batch.members.key[rows[bad]])
            writer.append("failed_reason", np.array([word for word in reasons if word], "S32"))
            rows = rows[~bad]
            writer.append("embedding", whole[kept].astype(np.float16))
            writer.append("key", batch.members.key[rows])
            writer.append("tar", np.full(len(rows), batch.tar, np.int32))
            writer.append("offset", batch.members.offset[rows])
            writer.append("size", batch.members.size[rows])
            writer.append("digest", batch.members.digest[rows])
    return count


#: A batch, why its images cannot be used ('' where they can), and what gives the others' features.
_Encoded = tuple[_Batch, list[str], Callable[[], torch.Tensor]]


def _encoded(
    batches: Iterable[tuple[_Batch, DecodedBatch]], encoder: FrozenEncoder
) -> Iterator[_Encoded]:
    """Iterate over the batches; each is being encoded when it comes."""
    for batch, decoded in batches:
        reasons = decoded.reasons()
        features = _nothing
        if not all(reasons):
            pixels = torch.from_numpy(decoded.pixels()).permute(0, 3, 1, 2)
            features = encoder.start_images(pixels)
        yield batch, reasons, features


def _nothing() -> torch.Tensor:
    return torch.zeros(0)


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
        """Count a finished part. Raises :class:`UserError` once the share is beyond fixing."""
        with hdf5.reading(part, _PART) as file:
            reasons = file["failed_reason"][:]
            self.embedded += len(file["key"])
            self.without_caption += int(file.attrs["without_caption"])
        self._reasons.update(reason.decode() for reason in reasons)
        if self._total is not None:
            self._refuse(self._total)

    def check(self) -> None:
        """Raise :class:`UserError` if too large a share of all images failed."""
        self._refuse(self.embedded + self.failed)

    def table(self) -> str:
        """Return ' (damaged 2, crashed 1)', the most frequent first, or nothing."""
        counts = sorted(self._reasons.items(), key=lambda item: (-item[1], item[0]))
        return f" ({', '.join(f'{name} {count}' for name, count in counts)})" if counts else ""

    def _refuse(self, total: int) -> None:
        if self.failed > self._max_failed * total:
            fix = "or download the chunk again"
            if self._reasons[NOT_FINITE]:
                fix = "or set embed.precision to bf16 or fp32, or check the model's weights"
            raise UserError(
                f"{self._images}: {self.failed} of {total} images failed{self.table()}, more than"
                f" embed.max_failed = {self._max_failed:g} of them; raise it to resume without "
                f"them (finished tars are kept), {fix}"
            )


def _assemble(
    output: str | os.PathLike[str], parts: list[Path], dim: int, attributes: dict[str, str | int]
) -> None:
    """Join the parts, in the order of tars, into the output; one part is in memory at a time."""
    width = 9
    for part in parts:
        with hdf5.reading(part, _PART) as file:
            width = max(width, *(file[name].dtype.itemsize for name in ("key", "failed_key")))
    kinds = {"key": f"S{width}", "failed_key": f"S{width}"}
    empty = {
        "embedding": np.zeros((0, dim), np.float16), "key": np.zeros(0, kinds["key"]),
        "tar": np.zeros(0, np.int32), "offset": np.zeros(0, np.int64),
        "size": np.zeros(0, np.int64), "digest": np.zeros(0, np.uint64),
        "failed_key": np.zeros(0, kinds["failed_key"]),
        "failed_reason": np.zeros(0, "S32"),
    }  # fmt: skip
    with hdf5.writing(output, KIND, attributes) as writer:
        for name in (*_ROWS, *_FAILED):
            writer.append(name, empty[name])
        for part in parts:
            with hdf5.reading(part, _PART) as file:
                for name in (*_ROWS, *_FAILED):
                    rows = hdf5.whole(file, name)
                    writer.append(name, rows.astype(kinds.get(name, rows.dtype)))
