"""A folder of images, models, and `mlcd encode` and `mlcd search` on them."""

from __future__ import annotations

import os
from pathlib import Path

from PIL import Image

from helpers.builders import jpeg
from helpers.exports import export
from mlcd.cli import main
from mlcd.models import trainable

#: A file name that is markup to a careless page.
HOSTILE = '<img src=x onerror=alert(1)>&".jpg'
#: The images that decode.
GOOD = sorted([b"a.jpg", b"b/c.JPG", "b/deep/ü.jpeg".encode(), b"z.jpg", HOSTILE.encode()])


def write_models(folder: Path) -> Path:
    """Write a trained encoder with its export, and another encoder; return `folder`."""
    folder.mkdir(exist_ok=True)
    encoder = trainable.build("mlcd_vit_tiny_patch8", 16, 32, seed=2)
    trainable.save(encoder, folder / "train", {})
    export(folder / "train", folder / "export", "transformers")
    trainable.save(trainable.build("test_vit", 16, 32, seed=2), folder / "other", {})
    return folder


def write_images(folder: Path) -> Path:
    """Write images in three folders, some of which are none; return `folder`."""
    (folder / "b" / "deep").mkdir(parents=True)
    for number, name in enumerate(["a.jpg", "b/c.JPG", "b/deep/ü.jpeg", "z.jpg", HOSTILE]):
        (folder / name).write_bytes(jpeg(number, 40 + number))
    (folder / "b" / "cut.jpg").write_bytes(jpeg(1)[:300])
    (folder / "empty.png").write_bytes(b"")
    (folder / "words.gif").write_text("not an image")
    Image.new("RGB", (300, 300)).save(folder / "large.png")
    (folder / "huge.bmp").write_bytes(b"")
    os.truncate(folder / "huge.bmp", 1 << 40)  # takes no room on the disk
    (folder / "notes.txt").write_text("no image, by its ending")
    (folder / "gone.jpg").symlink_to(folder / "nowhere")
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe.jpg")
    return folder


def encode(*words: object) -> int:
    """Run `mlcd encode words…`; return its status."""
    return main(["encode", *map(str, words), "--max-pixels", "50000"])


def search(*words: object) -> int:
    """Run `mlcd search words…`; return its status."""
    return main(["search", *map(str, words), "--max-pixels", "50000"])
