"""Chunks of drawn scenes, whose boxes are known, and runs of the stage regions in this process."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from helpers.builders import image_store
from mlcd import cli
from mlcd.config import Embed
from mlcd.data.region_store import RegionStore
from mlcd.stages.embed.chunk import embed

#: Small and quick; a batch is not filled by the regions of one image.
EMBED = Embed(image_size=32, batch_size=4)
#: Boxes x0, y0, x1, y1 of the things on each ground, 96 × 64 pixels.
SCENES = (
    [(8, 8, 40, 56), (56, 20, 88, 52)],
    [(16, 12, 48, 44)],
    [],
    [(4, 4, 36, 32), (44, 8, 92, 32), (20, 38, 80, 60)],
    [(60, 6, 90, 58)],
)


def scene(boxes: list[tuple[int, int, int, int]], seed: int, size: tuple[int, int] = (96, 64)):
    """Return a PNG of filled rectangles in strong colors on a plain ground."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(rng.integers(200, 256, 3).tolist()))
    for x0, y0, x1, y1 in boxes:
        color = tuple(rng.integers(0, 120, 3).tolist())
        ImageDraw.Draw(image).rectangle((x0, y0, x1 - 1, y1 - 1), fill=color)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


class Chunk:
    """A chunk of drawn scenes, embedded, and a table with the column `boxes` of its images."""

    def __init__(self, folder: Path, scenes=SCENES, name: str = "a-00000") -> None:
        self.folder, self.scenes = folder, list(scenes)
        self.images = [scene(boxes, seed) for seed, boxes in enumerate(self.scenes)]
        self.manifest = image_store(folder / "images" / name, self.images, rows_per_tar=3)
        self.embeddings = folder / "embeddings" / f"{name}.h5"
        embed(self.manifest, self.embeddings, EMBED)
        self.output = folder / "regions" / f"{name}.h5"
        values = [list(map(list, boxes)) for boxes in self.scenes]
        self.table = self.write_table(values, folder / "boxes.parquet")

    def write_table(self, values: list[object], path: Path) -> str:
        """Write a table of the images' boxes, in another order than theirs; return its path."""
        urls = [f"http://127.0.0.1/{row:09d}.jpg" for row in range(len(values))]
        frame = pd.DataFrame({"url": urls, "boxes": values})
        frame[::-1].to_parquet(path, index=False)
        return str(path)

    def run(self, *words: object, output: Path | None = None, **keys: object) -> int:
        """Run the stage; return the status."""
        section = {"source": "column", "column": "boxes", "tables": [self.table], **keys}
        return cli.main(
            [
                "regions", "--images", str(self.manifest), "--embeddings", str(self.embeddings),
                "--output", str(output or self.output), "--threads", "1",
                "--embed-config", EMBED.to_json(), "--config", json.dumps(section),
                *map(str, words),
            ]
        )  # fmt: skip

    def found(self, output: Path | None = None) -> dict[int, list[list[int]]]:
        """Return image → boxes in pixels, as the output has them."""
        store = RegionStore(output or self.output)
        pixels = np.rint(store.boxes() * [96, 64, 96, 64]).astype(int).tolist()
        boxes: dict[int, list[list[int]]] = {}
        for image, box in zip(store.images().tolist(), pixels, strict=True):
            boxes.setdefault(image, []).append(box)
        return boxes
