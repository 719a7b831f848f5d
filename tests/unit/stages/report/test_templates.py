"""Templates of the pages: every value is escaped, a missing one is an error."""

from __future__ import annotations

import jinja2
import pytest
from markupsafe import Markup

from mlcd.stages.report.page import Drawing, code, render, sections, table

HOSTILE = "<script>alert('x')</script> \"&amp; {{ 7 * 7 }}"


@pytest.mark.parametrize(
    "html",
    [
        Drawing(HOSTILE, HOSTILE, HOSTILE, warnings=[HOSTILE]).html(),
        table([HOSTILE], [[HOSTILE], [code(HOSTILE)]]),
        sections((HOSTILE, table(["a"], [[1]]))),
        render("tile.html", side=8, image=None, reason=HOSTILE),
        render("tile.html", side=8, image="data:image/webp;base64,AAAA", caption=HOSTILE),
    ],
    ids=["page", "table", "sections", "lost tile", "tile"],
)
def test_hostile_words_are_escaped(html):
    assert "<script" not in html and "49" not in html
    assert "&lt;script&gt;" in html and "&#34;&amp;amp;" in html


def test_markup_is_not_escaped_twice():
    html = table(["a"], [[code("<b>")]])
    assert "<code>&lt;b&gt;</code>" in html
    assert Drawing("t", "l", html).html().count("&lt;b&gt;") == 1
    assert isinstance(html, Markup)


def test_a_forgotten_value_is_an_error():
    with pytest.raises(jinja2.UndefinedError):
        render("tile.html", side=8)


def test_cells_have_their_classes():
    html = table(["a", "b"], [["x", 1], ["y", 2]], numbers=(1,), best=((0, 1),), total=True)
    assert html.count('<th class="number">') == 1
    assert '<td class="number best">1</td>' in html and '<td class="number">2</td>' in html
    assert html.count('<tr class="total">') == 1
