"""Images with drawn words, and files of text without any reader, for the tests of stage ocr."""

from __future__ import annotations

import io
from pathlib import Path

import matplotlib
from PIL import Image, ImageDraw, ImageFont

from helpers import builders
from mlcd import cli
from mlcd.data import hdf5
from mlcd.data.ocr import KIND, Line, columns

_FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
BOX = (0.1, 0.2, 0.9, 0.4)


def ocr(part: str, *words: object) -> int:
    return cli.main(["ocr", "--part", part, *map(str, words)])


def drawn(*lines: str, side: tuple[int, int] = (320, 240)) -> bytes:
    """Return a PNG with lines of text, black on a pale ground; none of them leaves it empty."""
    image = Image.new("RGB", side, (245, 240, 230))
    font = ImageFont.truetype(str(_FONT), 28)
    for number, line in enumerate(lines):
        ImageDraw.Draw(image).text((16, 24 + 60 * number), line, fill="black", font=font)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def text_file(path: Path, images: list[list[tuple[str, float]]], embeddings: str = "e") -> Path:
    """Write the (line, confidence) of `images` as the text of the chunk `path` is called by."""
    found = [
        (row, [Line(text, confidence, BOX) for text, confidence in lines])
        for row, lines in enumerate(images)
    ]
    attributes = {"chunk": path.stem, "images": len(images), "failed": 0, "manifest": "",
                  "embeddings": embeddings, "engine": "{}", "section": "{}"}  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    hdf5.write(path, KIND, columns(found), attributes)
    return path


def chunk_of(folder: Path, images: list[bytes], name: str = "a-00000") -> tuple[Path, Path]:
    """Write a chunk of images and its embeddings; return manifest and embeddings."""
    manifest = builders.image_store(folder / "images" / name, images)
    vectors = builders.unit_vectors(len(images), 8)
    path = folder / "embeddings" / f"{name}.h5"
    path.parent.mkdir(parents=True, exist_ok=True)
    return manifest, builders.embeddings_file(path, vectors, manifest=manifest)
