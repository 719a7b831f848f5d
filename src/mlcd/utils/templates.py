"""Templates of pages and cards: one way to fill them in, and what of strangers' words may count."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

import jinja2


def html(package: str, folder: str) -> jinja2.Environment:
    """Return the templates in a folder of a package for HTML: what is no Markup is escaped.

    The caller names the folder: so its templates count as files that its own code reads
    (:mod:`mlcd.utils.fingerprint`).
    """
    return _environment(package, folder, autoescape=True)


def markdown(package: str, folder: str) -> jinja2.Environment:
    """Return the same for Markdown, with :func:`table` as a function of the templates.

    Nothing is escaped: what strangers named stands as :func:`code`.
    """
    environment = _environment(package, folder, autoescape=False)
    environment.globals["table"] = table
    return environment


def _environment(package: str, folder: str, *, autoescape: bool) -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader(package, folder),
        autoescape=autoescape,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def code(value: Any) -> str:
    """Return a value as code in a cell of Markdown: one line, in which no mark counts."""
    text = " ".join(str(value).split()).replace("`", "'").replace("|", "\\|")
    return f"`{text or ' '}`"


def table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table of Markdown, one line per row."""
    lines = [f"| {' | '.join(map(_cell, header))} |", "|" + " --- |" * len(header)]
    lines += [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    return "\n".join(lines) + "\n"


def _cell(value: Any) -> str:
    """Return text in which bars are no ends of cells; those of :func:`code` are none already."""
    return re.sub(r"(?<!\\)\|", r"\\|", " ".join(str(value).splitlines()))
