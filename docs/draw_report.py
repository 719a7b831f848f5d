"""Draw docs/images/report.png, the first page of the demo's report, after `make demo`:

python docs/draw_report.py results/report.html

Needs Debian's chromium and chromium-driver.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests"))
from helpers.browser import Browser  # noqa: E402

OUTPUT = HERE / "images" / "report.png"
WIDTH, HEIGHT = 1280, 1100
#: Colors of the image: a page has few.
COLORS = 128


def main(report: str) -> None:
    """Open the report in a headless browser, and keep what the window shows."""
    with tempfile.TemporaryDirectory() as folder, Browser() as browser:
        browser.look(WIDTH, HEIGHT)
        browser.open(Path(report))
        if not browser.wait("return document.querySelector('.mlcd h1')"):
            sys.exit(f"{report}: shows no first page; give the report.html of a run")
        browser.wait("return document.getAnimations().every(a => a.playState != 'running')")
        shot = Path(folder, "shot.png")
        browser.screenshot(shot)
        image = Image.open(io.BytesIO(shot.read_bytes())).convert("RGB")
    image.quantize(COLORS, dither=Image.Dither.NONE).save(OUTPUT, optimize=True)
    print(f"{OUTPUT}: {OUTPUT.stat().st_size // 1024} KB")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
