"""The first page of Snakemake's report: the overview, in the place of its description.

Snakemake renders a description of the workflow in a page of its own making, beside the graph of
rules. It takes HTML, so that the overview stands there, with links that open the report's pages.
Nothing heavy is imported: the Snakefile does.
"""

from __future__ import annotations

import re
import textwrap
from html import escape
from pathlib import Path

from markupsafe import Markup

from mlcd.utils import templates
from mlcd.utils.palette import COLORS

#: Opens a page of the report and its place in the menu: what Snakemake's own buttons do. Without a
#: blank: lines are broken at them, and browsers take line ends out of an address.
_OPEN = (
    "javascript:void(((k,c)=>{if(!k)return;"
    "c=Object.keys(categories).find(c=>Object.values(categories[c]).flat().includes(k));"
    "if(c)app.showCategory(c);"
    "app.setView({content:'html',contentPath:results[k].data_uri,resultPath:k})"
    "})(Object.keys(results).find(k=>k.endsWith('/PAGE.html'))))"
)
_LINE = 5000
_LINK = re.compile(r'href="([a-z_]+)\.html"')


def first_page(overview: Path, identity: str) -> str:
    """Return the HTML of the first page, without blank lines; '' where there is no overview.

    `identity`: that of the sealed run, '' if none is.
    """
    try:
        page = overview.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
    found = re.search(r"<main>(.*)</main>", page, re.DOTALL)
    if found is None:
        return ""
    body = _LINK.sub(
        lambda link: f'data-page="{link[1]}" href="{escape(_OPEN.replace("PAGE", link[1]))}"',
        found[1],
    )
    whole = (
        templates.html("mlcd.stages.report", "templates")
        .get_template("viewer.html")
        .render(body=Markup(body), identity=identity, colors=COLORS)
    )
    # The description's markup takes no line of more than 10,000 characters, and ends at blank ones.
    return textwrap.fill(whole, _LINE, break_long_words=False, break_on_hyphens=False)
