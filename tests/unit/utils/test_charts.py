"""A chart inside of a page: the page's colors, and values where one points."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from mlcd.utils import charts, glossary


def drawn(bars: int = 2) -> str:
    with charts.style():
        chart = charts.figure(4, 2)
        axes = chart.subplots()
        made = axes.bar(range(bars), range(1, bars + 1), color=charts.BLUE)
        charts.note_bars(axes, made, [f"<bar> {place}" for place in range(bars)])
        axes.set_xlim(-0.5, bars - 0.5)
        axes.set_ylim(0, bars)
    return charts.inline(chart, 'A "chart"')


def spots(svg: str) -> list[tuple[float, ...]]:
    found = re.findall(
        r'class="spot" x="([-\d.]+)" y="([-\d.]+)" width="([\d.]+)" height="([\d.]+)"', svg
    )
    return [tuple(map(float, one)) for one in found]


def test_colors_are_those_of_the_page():
    svg = drawn()
    assert "fill: var(--blue, #0072b2)" in svg and "var(--page, #ffffff)" in svg
    assert not re.search(r"(fill|stroke): #(0072b2|ffffff|5b6570)", svg)
    assert "metadata" not in svg and "<style" not in svg
    ElementTree.fromstring(svg)


def test_a_spot_lies_on_its_bar():
    """Against the paths that matplotlib drew, in points from the top left."""
    svg = drawn()
    paths = re.findall(r'<path d="M ([\d.]+) ([\d.]+) \nL ([\d.]+) [\d.]+ \nL [\d.]+ ([\d.]+) '
                       r'[^"]*" clip-path="[^"]*" style="fill: var\(--blue', svg)  # fmt: skip
    assert len(paths) == 2
    for (left, bottom, right, top), (x, y, width, height) in zip(paths, spots(svg), strict=True):
        assert x == pytest.approx(float(left), abs=0.1)
        assert y == pytest.approx(float(top), abs=0.1)
        assert x + width == pytest.approx(float(right), abs=0.1)
        assert y + height == pytest.approx(float(bottom), abs=0.1)


def test_words_are_escaped_and_reached_by_the_keyboard():
    svg = drawn()
    assert "<bar>" not in svg and svg.count("&lt;bar&gt; 0") == 2
    assert svg.count('tabindex="0"') == 2 and 'aria-label="&lt;bar&gt; 1"' in svg
    assert 'aria-label="A &quot;chart&quot;"' in svg
    # Hundreds of stops would be no help: a table of the page has the values.
    assert "tabindex" not in drawn(60) and len(spots(drawn(60))) == 60


def test_a_file_of_the_chart_has_no_notes():
    with charts.style():
        chart = charts.figure(4, 2)
        charts.note(chart.subplots(), None, None, "said", guide=True)
    assert b"said" not in charts.rendered(chart, "svg")
    assert "said" in charts.inline(chart, "a")


@pytest.mark.parametrize(
    ("name", "words"),
    [("knn_10", "k-NN accuracy, k = 10"), ("retrieval_r1", "image retrieval R@1"),
     ("text_to_image_r5", "text to image R@5"), ("linear_probe", "linear probe accuracy"),
     ("knn_few", "knn_few"), ("<b>", "<b>")],
)  # fmt: skip
def test_metrics_have_words(name, words):
    assert glossary.metric(name) == words
