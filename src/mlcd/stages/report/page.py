"""Self-contained HTML pages: nothing is fetched, no script runs, every word is escaped."""

from __future__ import annotations

import base64
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup
from matplotlib.figure import Figure

from mlcd.utils import charts, templates
from mlcd.utils.errors import UserError
from mlcd.utils.files import atomic_path, write_json, write_text
from mlcd.utils.logging import LOGGER
from mlcd.utils.palette import COLORS

#: Bytes of a page. Snakemake embeds pages as data URIs, which Chromium cuts off at 2 MiB, and
#: base64 makes four characters of three bytes.
LIMIT = 1_500_000

_CHARTS = (".svg", ".png", ".pdf")
_KINDS = (".html", *_CHARTS, ".json", ".csv")


@functools.cache
def _templates() -> jinja2.Environment:
    return templates.html("mlcd.stages.report", "templates")


def render(template: str, **values: Any) -> Markup:
    """Return a template of this package, filled in; values that are no Markup are escaped."""
    return Markup(_templates().get_template(template).render(values))


@dataclass
class Drawing:
    """What a part has to show.

    `title` states the finding and `lead` says how to read it; `body` is the Markup of
    :func:`render`, :func:`table` or :func:`sections`, and a plain string is escaped; `chart`,
    `numbers` (for .json) and `rows` (the text of a .csv) may be absent.
    """

    title: str
    lead: str
    body: str = ""
    chart: Figure | None = None
    warnings: list[str] = field(default_factory=list)
    numbers: dict[str, Any] | None = None
    rows: str | None = None

    def html(self) -> str:
        """Return the whole page."""
        chart = self.chart
        return render(
            "page.html",
            title=self.title,
            lead=self.lead,
            body=self.body,
            warnings=self.warnings,
            chart=Markup(charts.inline(chart, self.title)) if chart else None,
            colors=COLORS,
        )


def check_outputs(outputs: Sequence[str]) -> None:
    """Refuse, before any work, an output whose suffix says nothing. Raises :class:`UserError`."""
    for output in outputs:
        if Path(output).suffix not in _KINDS:
            raise UserError(f"{output}: end it with one of {', '.join(_KINDS)}")


def write(outputs: Sequence[str], drawing: Drawing) -> None:
    """Write the page, its chart or its numbers, as each output's suffix asks.

    Raises :class:`UserError` if a part has no chart or no numbers.
    """
    for output in outputs:
        suffix = Path(output).suffix
        if suffix == ".html":
            page = drawing.html()
            if (size := len(page.encode())) > LIMIT:
                LOGGER.warning(
                    "%s: %d bytes, over %d: embedded in a report, browsers may show nothing; show "
                    "fewer clusters or images (config section report)", output, size, LIMIT,
                )  # fmt: skip
            write_text(output, page)
        elif suffix == ".json":
            if drawing.numbers is None:
                raise UserError(f"{output}: this part has no numbers; ask for .html")
            write_json(output, drawing.numbers)
        elif suffix == ".csv":
            if drawing.rows is None:
                raise UserError(f"{output}: this part has no rows; ask for .html")
            write_text(output, drawing.rows)
        else:
            if drawing.chart is None:
                raise UserError(f"{output}: this part has no chart; ask for .html")
            with atomic_path(output) as temporary:
                temporary.write_bytes(charts.rendered(drawing.chart, suffix[1:]))


def data_uri(mime: str, data: bytes) -> str:
    """Return bytes as a data URI."""
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def code(value: object) -> Markup:
    """Return a value in a fixed-width face."""
    return Markup("<code>{}</code>").format(value)


def sections(*parts: tuple[str, Markup]) -> Markup:
    """Return pairs of a heading and its content, one below the other."""
    return render("sections.html", sections=parts)


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    numbers: Sequence[int] = (),
    best: Sequence[tuple[int, int]] = (),
    total: bool = False,
) -> Markup:
    """Return an HTML table.

    `numbers` are the columns set flush right, `best` the (row, column) cells set bold; with
    `total` the last row is one.
    """
    cells = {"columns": _kept(columns), "rows": [_kept(row) for row in rows]}
    return render("table.html", **cells, numbers=numbers, best=best, total=total)


def _kept(cells: Sequence[object]) -> list[object]:
    """Return cells in whose words no line breaks inside of `k = 10`."""
    return [
        cell.replace(" = ", "\u00a0=\u00a0") if isinstance(cell, str) else cell for cell in cells
    ]
