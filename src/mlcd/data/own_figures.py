"""What a figure of `report.figures` may be, known of its name, its size and its first bytes."""

from __future__ import annotations

import os
from pathlib import Path

from mlcd.config.files import quoted

#: How a figure's name may end.
SUFFIXES = (".svg", ".png", ".jpg", ".jpeg", ".webp")
#: Bytes of an SVG, which goes into a page as it is, and of an image, which is made smaller.
MOST_SVG, MOST_IMAGE = 1_000_000, 50_000_000
#: Bytes in which the root of an SVG begins, after declarations and comments.
_HEAD = 8192


def is_svg(path: str) -> bool:
    """True if a figure is an SVG, by its name."""
    return Path(path).suffix.lower() == ".svg"


def problem(path: str) -> str | None:
    """Return why a path is no figure that a page can show, or None."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        return f"{quoted(path)} ends in none of {', '.join(SUFFIXES)}; save it as one of them"
    most = MOST_SVG if is_svg(path) else MOST_IMAGE
    try:
        if not Path(path).is_file():
            raise FileNotFoundError
        with Path(path).open("rb") as file:
            size, head = os.fstat(file.fileno()).st_size, file.read(_HEAD)
    except (OSError, ValueError):
        return f"{quoted(path)} is no file that can be read; correct it"
    if size > most:
        return f"{quoted(path)} has {size} bytes, and {most} fit; make it smaller"
    if is_svg(path) and b"<svg" not in head:
        return f"{quoted(path)} is no SVG; correct it"
    return None
