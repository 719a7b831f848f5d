"""The report's first page: the run in a minute, and its place in Snakemake's viewer."""

from __future__ import annotations

import html as markup
import re

import pytest

from helpers.report_stores import CHUNKS, L, N, Outline
from mlcd.cli import main
from mlcd.stages.report import PARTS, pipeline
from mlcd.stages.report.viewer import first_page
from mlcd.utils.glossary import metric

IDENTITY = "ab" * 32


@pytest.fixture(scope="module")
def page(stores, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "overview.html"
    stores.draw("overview", path)
    return path


def boxes(html: str) -> dict[str, str]:
    """Return name → words of the boxes of the wide graph."""
    (wide,) = re.findall(r'<svg class="wide".*?</svg>', html, re.DOTALL)
    found = {}
    for part in wide.split('class="name">')[1:]:
        name, _, rest = part.partition("</text>")
        found[name] = " ".join(re.findall(r"<text[^>]*>(.*?)</text>", rest))
    return found


def test_the_page_tells_what_was_done_and_how_well(page):
    html = page.read_text()
    images = len(CHUNKS) * N
    assert "beats random weights and raw pixels on 2 of 2 metrics" in html
    assert "frozen encoder, which made the clusters, is ahead on 2 of 2" in html
    assert f"<dd>{images} images" in html or f"<dd>{images}, " in html
    assert f"l = {L} per image" in html and "200 steps" in html
    assert metric("knn_10") in html and "knn_10" not in html
    told = boxes(html)
    assert list(told) == ["prepare", "download", "embed", "cluster", "label", "train", "evaluate"]
    # Two jobs in three tries, of which the log knows one to have failed.
    assert told["embed"] == "done 30 images → vectors of 8 numbers 9 min 20 s, 2 jobs, 1 failed"
    assert "no job in this run" in told["train"]


def test_links_lead_to_pages_that_are_there(page):
    linked = {address for address in Outline(page.read_text()).addresses if ".html" in address}
    assert linked and linked <= {f"{part}.html" for part in PARTS}


def test_a_run_without_scores_and_records_has_a_first_page(stores, tmp_path):
    words = stores.options("overview")
    for option, count in (("--scores", 2), ("--jobs", 2), ("--centroids", 2)):
        place = words.index(option)
        del words[place : place + count]
    path = tmp_path / "a.html"
    assert main([*words, "--output", str(path)]) == 0
    told = boxes(path.read_text())
    assert "Nothing was evaluated" in path.read_text()
    assert "evaluate" not in told and "cluster" not in told


def test_a_table_of_jobs_that_cannot_be_read_is_named(stores, tmp_path, capsys):
    words = stores.options("overview")
    words[words.index("--jobs") + 1] = str(tmp_path / "none.csv")
    assert main([*words, "--output", str(tmp_path / "a.html")]) == 2
    assert "none.csv: not readable; rerun report --part efficiency" in capsys.readouterr().err


def test_long_and_hostile_words_stay_in_their_box():
    box = pipeline.Box("<b>embed</b>", ("x" * 80, "→ <i>"), "", "", "", "")
    svg = pipeline.drawn([box])
    assert "<b>" not in svg and "<i>" not in svg
    assert "x" * 40 not in svg and "x…" in svg
    assert "<a " not in svg


def test_the_viewer_shows_it_with_links_of_its_own(page):
    docutils = pytest.importorskip("docutils.core")
    shown = first_page(page, IDENTITY)
    lines = shown.splitlines()
    # What docutils takes: no blank line would end the block, none is over 10,000 characters.
    assert all(line.strip() and len(line) < 10_000 for line in lines)
    assert IDENTITY in shown and "data-page=&" not in shown
    assert not re.search(r'href="[a-z]+\.html"', shown)
    links = re.findall(r'data-page="([a-z]+)" href="(javascript:[^"]*)"', shown)
    assert {"download", "montage", "train", "results"} <= {name for name, _ in links}
    assert not any(re.search(r"\s", code) for _, code in links)
    assert all(f"endsWith('/{name}.html')" in markup.unescape(code) for name, code in links)
    text = ".. raw:: html\n\n" + "\n".join(f"   {line}" for line in lines) + "\n"
    settings = {"halt_level": 2, "report_level": 2}
    parts = docutils.publish_parts(text, writer_name="html", settings_overrides=settings)
    assert parts["body"].split() == shown.split()


def test_without_an_overview_the_viewer_shows_none(tmp_path):
    assert first_page(tmp_path / "overview.html", IDENTITY) == ""
    (tmp_path / "overview.html").write_text("half a page: <main>")
    assert first_page(tmp_path / "overview.html", IDENTITY) == ""
