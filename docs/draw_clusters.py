"""Draw docs/images/clusters.png from the report's page of clusters, after `make demo`:

python docs/draw_clusters.py results/report/montage.html 36 99 96 113
"""

from __future__ import annotations

import base64
import io
import re
import sys
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

OUTPUT = Path(__file__).parent / "images" / "clusters.png"
#: Pixels of a tile, around it, and above a row for its title.
TILE, GAP, TITLE = 104, 10, 28
TILES = 8


def main(page: str, numbers: list[str]) -> None:
    """Draw one row of images for each cluster in `numbers`, nearest to the center first."""
    text = Path(page).read_text(encoding="utf-8")
    size = (TILES * (TILE + GAP) + GAP, len(numbers) * (TILE + TITLE + GAP) + GAP)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(size=15)
    for row, number in enumerate(numbers):
        top = GAP + row * (TILE + TITLE + GAP)
        title, tiles = cluster(text, number)
        draw.text((GAP, top), title, fill="#57606a", font=font)
        for column, tile in enumerate(tiles[:TILES]):
            tile.thumbnail((TILE, TILE))
            left = GAP + column * (TILE + GAP) + (TILE - tile.width) // 2
            sheet.paste(tile, (left, top + TITLE + (TILE - tile.height) // 2))
    sheet.save(OUTPUT, optimize=True)
    print(f"{OUTPUT}: {OUTPUT.stat().st_size // 1024} KB")


def cluster(page: str, number: str) -> tuple[str, list[Image.Image]]:
    """Return the title and the images of a cluster of the page."""
    for section in re.findall(r"<section>(.*?)</section>", page, re.DOTALL):
        if f"<h2>Cluster {number} " in section:
            count = re.search(r"(\d+) images", section)
            title = f"cluster {number}, {count[1]} images" if count else f"cluster {number}"
            found = re.findall(r'src="data:[^,]+,([^"]+)"', section)
            return title, [_image(data) for data in found]
    raise SystemExit(f"the page shows no cluster {number}")


def _image(data: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
