"""Readers of small gray images in arrays: MNIST's idx files and scikit-learn's digits."""

from __future__ import annotations

import gzip
import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from mlcd.config.labeled import Dataset
from mlcd.data.labeled.sample import Sample
from mlcd.utils.errors import UserError

#: Images of scikit-learn's digits that are test: the last ones, by other writers in part.
_DIGITS_IN_TEST = 500
#: The most bytes that an idx file may say it holds (its header can claim anything).
_LARGEST = 1 << 31


def idx(dataset: Dataset) -> Iterator[Sample]:
    """A folder with train-images-idx3-ubyte, train-labels-idx1-ubyte and the same of t10k (.gz).

    Raises :class:`UserError` if a file is missing, damaged or its counts do not agree.
    """
    for split, stem in (("train", "train"), ("test", "t10k")):
        images_path, images = _read(dataset.path, stem, "images", "idx3")
        labels_path, labels = _read(dataset.path, stem, "labels", "idx1")
        if len(images) != len(labels):
            raise UserError(
                f"{images_path}: {len(images)} images and {len(labels)} labels in "
                f"{labels_path.name}; fetch both again"
            )
        for number, (image, label) in enumerate(zip(images, labels, strict=True)):
            yield Sample(f"{split}/{number:06d}", _png(image), split, label=str(label))


def digits(dataset: Dataset) -> Iterator[Sample]:
    """scikit-learn's 1,797 digits of 8 × 8; the last 500 are test."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = np.round(found.images * 255 / 16).astype(np.uint8)
    first_test = len(images) - _DIGITS_IN_TEST
    for number, (image, label) in enumerate(zip(images, found.target, strict=True)):
        split = "train" if number < first_test else "test"
        yield Sample(f"{number:06d}", _png(image), split, label=str(label))


def _read(folder: str, stem: str, what: str, ending: str) -> tuple[Path, np.ndarray]:
    """Return the path and the uint8 array of an idx file, gzipped or not."""
    name = f"{stem}-{what}?{ending}-ubyte"
    found = sorted(Path(folder).glob(f"{name}*"))
    if not found:
        raise UserError(f"{folder}: no {name.replace('?', '-')}(.gz); fetch all four idx files")
    path = found[0]
    dims = int(ending[-1])
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as handle:
            header = handle.read(4 + 4 * dims)
            magic, *shape = struct.unpack(f">{1 + dims}I", header)
            size = int(np.prod(shape, dtype=object))
            if magic != 0x800 + dims or size > _LARGEST:
                raise ValueError("its header is another")
            data = handle.read(size)
            if len(data) < size or handle.read(1):
                raise ValueError(f"its header says {size} bytes")
    except (OSError, EOFError, ValueError, struct.error, zlib.error) as error:
        raise UserError(f"{path}: not a whole {ending} file ({error}); fetch it again") from None
    return path, np.frombuffer(data, np.uint8).reshape(shape)


def _png(image: np.ndarray) -> bytes:
    """Return uint8 [h, w] as a PNG: all kinds of data sets yield bytes of an image format."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
