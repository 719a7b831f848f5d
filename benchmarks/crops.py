"""Real embeddings in any number: random crops of the demo's images through the packaged encoder.

    python benchmarks/crops.py --rows 100000 --output crops.h5

The demo has 2,380 images in its lists, too few for K = 4,096. Each crop takes 30 to 100 % of a
side, is mirrored half of the time, and is seen at 96 pixels. A function of the seed alone, up to
the last bits of the encoder.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "src"))

from mlcd.config.encoders import PACKAGED  # noqa: E402
from mlcd.data import hdf5  # noqa: E402
from mlcd.data.members import labeled_members  # noqa: E402
from mlcd.models import frozen  # noqa: E402
from mlcd.utils.logging import progress  # noqa: E402

BATCH = 128


def crop(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Return a random part of `image`."""
    sides = [max(8, int(side * rng.uniform(0.3, 1.0))) for side in image.size]
    left, top = (
        int(rng.integers(0, max(1, whole - side + 1)))
        for whole, side in zip(image.size, sides, strict=True)
    )
    part = image.crop((left, top, left + sides[0], top + sides[1]))
    return ImageOps.mirror(part) if rng.random() < 0.5 else part


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args()
    rng = np.random.default_rng(0)
    images = [
        Image.open(io.BytesIO(data)).convert("RGB")
        for _, data, _ in labeled_members(ROOT / "demo/openclipart.tar")
    ]
    encoder = frozen.load(PACKAGED, image_size=arguments.size)
    with hdf5.writing(arguments.output, "embeddings", {"model": "{}"}) as writer:
        starts = range(0, arguments.rows, BATCH)
        for start in progress(starts, total=len(starts), label="crops", unit="batch"):
            chosen = rng.integers(0, len(images), min(BATCH, arguments.rows - start))
            crops = [encoder.preprocess(crop(images[index], rng)) for index in chosen]
            features = encoder.encode_images(torch.stack(crops))
            writer.append("embedding", np.asarray(features, np.float16))


if __name__ == "__main__":
    main()
