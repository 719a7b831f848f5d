"""Make tars and a URL list of Fashion-MNIST, for the ablation study of docs/results/ablations.md.

    apt-get install dataset-fashion-mnist
    python demo/fashion_mnist.py --output results/fashion-mnist

Reads Debian's package of the images (Zalando Research, MIT license) and writes

    list.parquet   URLs of the first 12,000 images of the train split, as demo/server.py has them
    choose.tar     these, and images 16,000 to 20,000 of the train split as its test side:
                   settings are chosen on it
    test.tar       these, and the first 5,000 images of the test split: the study's table
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import math
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from server import PORT, PREFIX

from mlcd.utils.errors import UserError
from mlcd.utils.files import atomic_path

ROOT = Path("/usr/share/datasets/fashion-mnist")
CLASSES = (
    "t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag",
    "ankle boot",
)  # fmt: skip
TRAIN, CHOOSE, TEST = 12_000, (16_000, 20_000), 5_000


class Item(NamedTuple):
    """One image: its key, its bytes as PNG and its class."""

    key: str
    data: bytes
    label: str


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", type=Path, default=ROOT, help=f"folder of the idx files [{ROOT}]")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    arguments = parser.parse_args()
    root, output = arguments.root, arguments.output
    output.mkdir(parents=True, exist_ok=True)
    train = list(items(root, "train", 0, TRAIN))
    pack(output / "choose.tar", train, list(items(root, "train", *CHOOSE)))
    pack(output / "test.tar", train, list(items(root, "t10k", 0, TEST)))
    columns = {
        "url": [f"http://127.0.0.1:{PORT}{PREFIX}{item.key}.png" for item in train],
        "sha256": [hashlib.sha256(item.data).hexdigest() for item in train],
    }
    with atomic_path(output / "list.parquet") as temporary:
        pq.write_table(pa.table(columns), temporary)


def items(root: Path, name: str, first: int, last: int) -> Iterator[Item]:
    """Iterate over the images `first` to `last` of a split, as RGB PNGs of 28 × 28 pixels."""
    levels = read_idx(root / f"{name}-images-idx3-ubyte.gz")
    labels = read_idx(root / f"{name}-labels-idx1-ubyte.gz")
    for index in range(len(levels))[first:last]:
        buffer = io.BytesIO()
        Image.fromarray(levels[index]).convert("RGB").save(buffer, "png")
        yield Item(f"{name}-{index:05d}", buffer.getvalue(), CLASSES[labels[index]])


def read_idx(path: Path) -> np.ndarray:
    """Return the bytes of an idx file as an array of its shape. Raises :class:`UserError`."""
    try:
        data = gzip.decompress(path.read_bytes())
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; install dataset-fashion-mnist") from None
    except OSError as error:
        raise UserError(f"{path}: not readable ({error}); install the package again") from None
    start = 4 + 4 * data[3] if len(data) > 4 else len(data) + 1
    shape = [int.from_bytes(data[at : at + 4], "big") for at in range(4, start, 4)]
    if data[:3] != b"\0\0\x08" or not shape or math.prod(shape) != len(data) - start:
        raise UserError(f"{path}: no idx file of bytes; install the package again")
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def pack(path: Path, train: list[Item], test: list[Item]) -> None:
    """Write a webdataset tar, KEY.png beside KEY.json with label and split; equal bytes again."""
    with (
        atomic_path(path) as temporary,
        tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for split, group in (("train", train), ("test", test)):
            for item in group:
                about = json.dumps({"label": item.label, "split": split}).encode()
                for suffix, data in (("png", item.data), ("json", about)):
                    member = tarfile.TarInfo(f"{item.key}.{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        raise SystemExit(f"fashion_mnist: {error}") from None
