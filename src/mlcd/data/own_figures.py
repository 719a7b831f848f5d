"""What a figure of `report.figures` may be, known from its name, its size and its markup."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.parsers import expat

from mlcd.config.files import quoted

#: How a figure's name may end.
SUFFIXES = (".svg", ".png", ".jpg", ".jpeg", ".webp")
#: Bytes of an SVG, which goes into a page as it is, and of an image, which is made smaller.
MOST_SVG, MOST_IMAGE = 1_000_000, 50_000_000
#: The root of an SVG as expat names it; without its namespace browsers show no image.
_ROOT = "http://www.w3.org/2000/svg svg"


def is_svg(path: str) -> bool:
    """True if a figure is an SVG, by its name."""
    return Path(path).suffix.lower() == ".svg"


def problem(path: str) -> str | None:
    """Return why a path is no figure that a page can show, or None. Other images: by name, size."""
    suffix = Path(path).suffix.lower()
    if suffix not in SUFFIXES:
        return f"{quoted(path)} ends in none of {', '.join(SUFFIXES)}; save it as one of them"
    most = MOST_SVG if is_svg(path) else MOST_IMAGE
    try:
        if not Path(path).is_file():
            raise FileNotFoundError
        with Path(path).open("rb") as file:
            data = file.read(most + 1) if is_svg(path) else file.read(1)
            size = file.seek(0, 2)
    except (OSError, ValueError):
        return f"{quoted(path)} is no file that can be read; correct it"
    if size > most:
        return f"{quoted(path)} has {size} bytes, and {most} fit; make it smaller"
    if is_svg(path) and (told := svg_problem(data)):
        return f"{quoted(path)} is no SVG that browsers show ({told}); save it again"
    return None


def svg_problem(data: bytes) -> str | None:
    """Return why bytes are no SVG, or None. Entities are refused: few bytes may stand for many."""
    parser = expat.ParserCreate(namespace_separator=" ")
    roots: list[str] = []

    def start(name: str, _: Any) -> None:
        roots.append(name)
        parser.StartElementHandler = None

    def entity(*_: Any) -> None:
        raise ValueError("it declares entities")

    parser.StartElementHandler = start
    parser.EntityDeclHandler = entity
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, ValueError, LookupError) as error:
        return str(error)
    return None if roots == [_ROOT] else f"its root is {quoted(roots[0])}"
