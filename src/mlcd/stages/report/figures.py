"""Part `figures`: figures from outside of the run, such as that of a study over several runs.

They are data of someone else: an SVG is shown as an image, in which browsers run no script and
fetch nothing, and other images are decoded and encoded anew.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

from PIL import Image

from mlcd.config import Report
from mlcd.config.files import quoted
from mlcd.data import own_figures
from mlcd.data.decode import BadImage, decode
from mlcd.stages.report.page import LIMIT, Drawing, data_uri, render
from mlcd.utils.errors import UserError

#: Longer side in pixels of an image that is no SVG.
_SIDE = 1600
#: Bytes of a page beside its figures, at most.
_REST = 40_000


def draw(section: Report) -> Drawing:
    """Show the section's `figures`, in their order.

    Raises :class:`UserError` if there are none, one is no figure, or the page would be too large.
    """
    if not section.figures:
        raise UserError("report.figures: names no figure; give paths")
    shown = [_shown(path, section.max_pixels) for path in section.figures]
    if (size := sum(len(figure["image"]) for figure in shown)) > LIMIT - _REST:
        raise UserError(
            f"report.figures: {size} bytes of a page, and {LIMIT - _REST} fit; show fewer or "
            "simpler ones"
        )
    title = f"{len(shown)} figures from outside of the run" if len(shown) > 1 else shown[0]["name"]
    lead = (
        "From outside of the run, named by report.figures: no stage made what is shown here, and "
        "nothing else of the run rests on it."
    )
    return Drawing(title, lead, render("figures.html", figures=shown))


def _shown(path: str, max_pixels: int) -> dict[str, str]:
    """Return a figure's name, its SHA-256 and its data URI."""
    if problem := own_figures.problem(path):
        raise UserError(f"report.figures: {problem}")
    data = Path(path).read_bytes()
    if own_figures.is_svg(path):
        image = data_uri("image/svg+xml", data)
    else:
        try:
            image = data_uri("image/webp", _webp(decode(data, max_pixels=max_pixels)))
        except BadImage as error:
            raise UserError(f"report.figures: {quoted(path)}: {error}; save it again") from None
    return {"name": Path(path).name, "sha256": hashlib.sha256(data).hexdigest(), "image": image}


def _webp(image: Image.Image) -> bytes:
    image.thumbnail((_SIDE, _SIDE), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=90, method=4)
    return buffer.getvalue()
