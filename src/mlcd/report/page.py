"""Self-contained HTML pages: nothing is fetched, no script runs, every word is escaped."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from mlcd.errors import UserError
from mlcd.files import atomic_path, write_json, write_text
from mlcd.progress import LOGGER
from mlcd.report import style
from mlcd.report.css import CSS

#: Bytes of a page. Snakemake embeds pages as data URIs, which Chromium cuts off at 2 MiB, and
#: base64 makes four characters of three bytes.
LIMIT = 1_500_000

_CHARTS = (".svg", ".png", ".pdf")
_KINDS = (".html", *_CHARTS, ".json", ".csv")


@dataclass
class Drawing:
    """What a part has to show.

    `title` states the finding and `lead` says how to read it; `body` is HTML whose every stranger's
    word went through :func:`text` or :func:`table`; `chart`, `numbers` (for .json) and `rows` (the
    text of a .csv) may be absent.
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
        parts = [f"<h1>{text(self.title)}</h1>", f'<p class="lead">{text(self.lead)}</p>']
        parts += [f'<p class="warn">{text(warning)}</p>' for warning in self.warnings]
        if self.chart is not None:
            source = data_uri("image/svg+xml", style.rendered(self.chart, "svg"))
            parts.append(f'<img class="chart" alt="{text(self.title)}" src="{source}">')
        return (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
            f"<title>{text(self.title)}</title>\n<style>\n{CSS}</style>\n</head>\n<body>\n<main>\n"
            + "\n".join([*parts, self.body])
            + "\n</main>\n</body>\n</html>\n"
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
                    "fewer clusters or pictures (config section report)", output, size, LIMIT,
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
                temporary.write_bytes(style.rendered(drawing.chart, suffix[1:]))


def text(value: object) -> str:
    """Escape a value for HTML, in text or in a quoted attribute."""
    return escape(str(value), quote=True)


def data_uri(mime: str, data: bytes) -> str:
    """Return bytes as a data URI."""
    return f"data:{mime};base64,{base64.b64encode(data).decode()}"


def code(value: object) -> Html:
    """Return a value in a fixed-width face."""
    return Html(f"<code>{text(value)}</code>")


class Html(str):
    """A string that is markup already: :func:`table` does not escape it again."""


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    numbers: Sequence[int] = (),
    best: Sequence[tuple[int, int]] = (),
    total: bool = False,
) -> str:
    """Return an HTML table.

    `numbers` are the columns set flush right, `best` the (row, column) cells set bold; with
    `total` the last row is one.
    """

    def cell(tag: str, value: object, kinds: list[str]) -> str:
        kind = f' class="{" ".join(kinds)}"' if kinds else ""
        return f"<{tag}{kind}>{value if isinstance(value, Html) else text(value)}</{tag}>"

    head = "".join(
        cell("th", name, ["number"] if index in numbers else [])
        for index, name in enumerate(columns)
    )
    lines = []
    for number, row in enumerate(rows):
        cells = ""
        for index, value in enumerate(row):
            kinds = ["number"] if index in numbers else []
            cells += cell("td", value, kinds + (["best"] if (number, index) in best else []))
        last = ' class="total"' if total and number == len(rows) - 1 else ""
        lines.append(f"<tr{last}>{cells}</tr>")
    body = "\n".join(lines)
    return (
        f'<div class="scroll"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>\n</table></div>"
    )
