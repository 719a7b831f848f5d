"""What the stage ocr finds and costs, on images of drawn words: the table of docs/how-to/ocr.md.

    pip install -e '.[ocr]'
    python benchmarks/ocr.py

Eight images of 320 × 240 pixels for each size of letters, with three words each, drawn in one font
without rotation on colored grounds. Prints for each `ocr.side` the CPU seconds per image, how many
words were found, and how many that nobody drew; and the memory of a process, also after a strip
that is eight times as long as wide. Such text is easy: this is the floor of the cost, and the
ceiling of what is found.
"""

from __future__ import annotations

import argparse
import io
import resource
import sys
import time
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from mlcd.config.ocr import Ocr
from mlcd.stages.ocr.engine import ReadLines
from mlcd.stages.ocr.words import words_of
from mlcd.utils.errors import UserError

FONT = Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"
WORDS = (
    "bread", "coffee", "market", "street", "exit", "sale", "open", "closed", "hotel", "museum",
    "school", "water", "river", "mountain", "garden", "bridge", "engine", "window", "doctor",
    "pepper", "silver", "orange", "yellow", "purple",
)  # fmt: skip
LETTERS = (10, 14, 20, 28)  # pixels
IMAGES = 8
SIDES = (736, 448, 224)


def page(seed: int, letters: int, size: tuple[int, int] = (320, 240)) -> tuple[bytes, set[str]]:
    """Return a JPEG with three words of `letters` pixels, and the words."""
    rng = np.random.default_rng(seed)
    words = [str(word) for word in rng.choice(WORDS, 3, replace=False)]
    small = Image.fromarray(rng.integers(150, 256, (6, 6, 3), np.uint8))
    image = small.resize(size, Image.Resampling.BICUBIC)
    draw, font = ImageDraw.Draw(image), ImageFont.truetype(str(FONT), letters)
    for place, word in enumerate(words):
        left, down = (int(rng.integers(0, most)) for most in (145, 20))
        draw.text((5 + left, 20 + 70 * place + down), word, fill="black", font=font)
    data = io.BytesIO()
    image.save(data, "JPEG", quality=90)
    return data.getvalue(), set(words)


def peak() -> str:
    """Return the most memory that this process has had."""
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GB"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sides", type=int, nargs="+", default=list(SIDES))
    arguments = parser.parse_args()
    section = Ocr()
    pages = [page(100 * letters + seed, letters) for letters in LETTERS for seed in range(IMAGES)]
    drawn = sum(len(words) for _, words in pages)
    print(f"| `ocr.side` | seconds of a core per image | words found, of {drawn} | others |")
    print("|---|---:|---:|---:|")
    for side in arguments.sides:
        read = ReadLines(side, section.max_pixels)
        read(page(0, 24)[0])  # the networks are loaded at the first image
        found = others = 0
        start = time.process_time()
        for data, words in pages:
            got = {
                word
                for line in read(data)
                if line.confidence >= section.min_confidence
                for word in words_of(line.text, section.min_length)
            }
            found, others = found + len(got & words), others + len(got - words)
        cost = (time.process_time() - start) / len(pages)
        print(f"| {side} | {cost:.2f} | {found} | {others} |", flush=True)
    print(f"memory of the process: {peak()}")
    ReadLines(arguments.sides[0], section.max_pixels)(page(0, 24, (2400, 300))[0])
    print(f"after a strip of 2,400 × 300 pixels: {peak()}")


if __name__ == "__main__":
    try:
        main()
    except UserError as error:
        sys.exit(f"ocr: {error}")
