"""`mlcd encode IMAGE_OR_FOLDER … --model DIR --output E.h5`: embeddings of loose images.

For thousands to some millions of images on one machine, started over if it was cut off; a
image set of many chunks belongs into the stages download and embed.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mlcd.data.image_folder import Loose, images
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER, progress
from mlcd.utils.ownership import claim

if TYPE_CHECKING:
    from mlcd.data.decode_pool import Decoded, DecodePool, ImageLocation
    from mlcd.stages.export.loading import ImageModel

#: Failed images that are named in the log; the file names all.
_NAMED = 100
#: Bytes that a file may have for each pixel allowed: 16 bits in four channels, uncompressed.
_BYTES_A_PIXEL = 8
_HEADER = 1 << 20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add images, model and output, and how wide it runs."""
    parser.add_argument("images", nargs="+", metavar="IMAGE_OR_FOLDER")
    parser.add_argument("--output", required=True, metavar="FILE", help="embeddings, HDF5")
    add_resources(parser)


def add_resources(parser: argparse.ArgumentParser) -> None:
    """Add the model and what it runs on."""
    parser.add_argument(
        "--model",
        required=True,
        metavar="DIR",
        help="results/train, or results/export/FORMAT: the encoder",
    )
    parser.add_argument("--batch-size", type=int, default=64, help="images at once [64]")
    parser.add_argument("--workers", type=int, default=1, help="decoding processes [1]")
    parser.add_argument("--threads", type=int, default=1, help="threads of the encoder [1]")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 … [auto]")
    parser.add_argument(
        "--max-pixels",
        type=int,
        default=100_000_000,
        help="larger images are counted as failed, undecoded [100000000]",
    )
    parser.add_argument("--log", metavar="FILE", help="also append log lines to this file")


def run(arguments: argparse.Namespace, section: object = None) -> None:
    """Write the embeddings; see docs/reference/formats.md. Raises :class:`UserError`."""
    if not arguments.output.endswith(".h5"):
        raise UserError(f"--output: {arguments.output}: end it with .h5")
    claim(arguments.output)
    write(arguments.images, model_of(arguments), arguments.output, arguments)


def model_of(arguments: argparse.Namespace) -> ImageModel:
    """Open --model on --device. Raises :class:`UserError`."""
    import torch

    from mlcd.stages.export.loading import open_model
    from mlcd.utils.device import pick_device

    for name in ("batch_size", "workers", "threads", "max_pixels"):
        if getattr(arguments, name) < 1:
            raise UserError(f"--{name.replace('_', '-')}: expected at least 1")
    torch.set_num_threads(arguments.threads)
    return open_model(arguments.model, pick_device(arguments.device))


def write(
    places: Sequence[str],
    model: ImageModel,
    output: str | os.PathLike[str],
    arguments: argparse.Namespace,
) -> None:
    """Embed the images of `places` into `output`, in the order of their names.

    Raises :class:`UserError` if there are none, or if none could be decoded.
    """
    from mlcd.data import hdf5
    from mlcd.data.decode_pool import DecodeImage, DecodePool
    from mlcd.data.embeddings import KIND

    # A first pass for the number and the longest name: HDF5 wants to know its width beforehand.
    lengths = (len(image.key) for image in images(places, report=True))
    total, width = 0, 9
    for length in lengths:
        total, width = total + 1, max(width, length)
    if not total:
        raise UserError(f"{places[0]}: no images in it; expected .jpg, .png, .webp …")
    failures = _Failures()
    attributes = {"chunk": "", "model": json.dumps(model.identity), "manifest": ""}
    decoder = DecodeImage(model.pixels, arguments.max_pixels)
    ring = (arguments.batch_size, *model.pixels.size)
    with (
        hdf5.writing(output, KIND, attributes) as writer,
        DecodePool(decoder, arguments.workers, loose=True, ring=ring) as pool,
    ):
        writer.append("embedding", np.zeros((0, model.identity["dim"]), np.float16))
        for name in ("key", "failed_key"):
            writer.append(name, np.zeros(0, f"S{width}"))
        writer.append("failed_reason", np.zeros(0, "S32"))
        writer.append("file_size", np.zeros(0, np.int64))
        batches = _decoded(images(places), arguments.batch_size, arguments.max_pixels, pool)
        steps = -(-total // arguments.batch_size)
        for batch, decoded in progress(batches, total=steps, label="encode", unit="batch"):
            _append(writer, model, batch, decoded, failures, width)
        if failures.count == total:
            raise UserError(f"{places[0]}: none of {total} images could be used{failures}")
    LOGGER.info("%s: %d images, %d failed%s", output, total - failures.count, failures.count,
                failures)  # fmt: skip


def _decoded(
    found: Iterator[Loose], size: int, max_pixels: int, pool: DecodePool
) -> Iterator[tuple[list[Loose], list[Decoded]]]:
    """Iterate over batches in order; files too large to hold an image allowed are not read."""
    sent: deque[list[Loose]] = deque()
    limit = _BYTES_A_PIXEL * max_pixels + _HEADER

    def places() -> Iterator[list[ImageLocation]]:
        while batch := list(itertools.islice(found, size)):
            sent.append(batch)
            yield [(one.path, 0, one.size, None) for one in batch if one.size <= limit]

    for decoded in pool.batches(places()):
        batch, rest = sent.popleft(), iter(decoded.found)
        yield batch, ["too_large" if one.size > limit else next(rest) for one in batch]


def _append(
    writer: Any,
    model: ImageModel,
    batch: list[Loose],
    decoded: list[Decoded],
    failures: _Failures,
    width: int,
) -> None:
    from mlcd.data.embeddings import unusable

    if max(len(one.key) for one in batch) > width:
        raise UserError(f"{batch[0].path}: its folder changed meanwhile; run again")
    reasons = [item if isinstance(item, str) else "" for item in decoded]
    good = [number for number, reason in enumerate(reasons) if not reason]
    if good:
        rows = model.encode(np.stack([item for item in decoded if not isinstance(item, str)]))
        for number, reason in zip(good, unusable(rows), strict=True):
            reasons[number] = reason
        rows = rows[[not reasons[number] for number in good]]
        kept = [one for one, reason in zip(batch, reasons, strict=True) if not reason]
        writer.append("embedding", rows.astype(np.float16))
        writer.append("key", np.array([one.key for one in kept], f"S{width}"))
        writer.append("file_size", np.array([one.size for one in kept], np.int64))
    bad = [(one, reason) for one, reason in zip(batch, reasons, strict=True) if reason]
    for one, reason in bad:
        failures.add(one, reason)
    writer.append("failed_key", np.array([one.key for one, _ in bad], f"S{width}"))
    writer.append("failed_reason", np.array([reason for _, reason in bad], "S32"))


class _Failures:
    """Images without an embedding, by reason; as text ' (damaged 2, empty 1)', or nothing."""

    def __init__(self) -> None:
        self._reasons: Counter[str] = Counter()

    @property
    def count(self) -> int:
        return self._reasons.total()

    def add(self, image: Loose, reason: str) -> None:
        self._reasons[reason] += 1
        if self.count <= _NAMED:
            LOGGER.warning("%r: %s", image.path, reason)
        elif self.count == _NAMED + 1:
            LOGGER.warning("further failures are counted, and named in failed_key of the output")

    def __str__(self) -> str:
        counts = sorted(self._reasons.items(), key=lambda item: (-item[1], item[0]))
        return f" ({', '.join(f'{name} {count}' for name, count in counts)})" if counts else ""
