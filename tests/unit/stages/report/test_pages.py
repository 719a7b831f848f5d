"""The report's pages: right numbers, nothing unescaped, nothing fetched, equal bytes."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from PIL import Image

from helpers.builders import change_record, csv_table, image_store
from helpers.report_stores import CHUNKS, K, L, N, Outline, cells
from mlcd.cli import main
from mlcd.config import Report
from mlcd.data.image_store import fingerprint
from mlcd.stages.report import PARTS, download, page, results
from mlcd.utils.files import read_json
from mlcd.utils.logging import LOGGER
from mlcd.utils.records import write_record

CHARTED = ("download", "cluster", "label", "train", "text", "results", "efficiency", "ablate")


@pytest.mark.parametrize("part", PARTS)
def test_every_page_is_whole_self_contained_and_the_same_again(stores, tmp_path, part):
    html = stores.draw(part, tmp_path / "a.html")
    outline = Outline(html)
    assert not outline.open
    pages = {f"{name}.html" for name in PARTS}
    assert all(
        address.startswith("data:image/") or address in pages for address in outline.addresses
    )
    assert "script" not in outline.tags and "link" not in outline.tags and "@import" not in html
    assert outline.tags.count("h1") == 1
    assert ("svg" in outline.tags or "img" in outline.tags) == (part != "provenance")
    assert stores.draw(part, tmp_path / "b.html") == html
    assert str(stores.folder) not in html


@pytest.mark.parametrize("part", CHARTED)
def test_charts_are_equal_bytes_without_a_date(stores, tmp_path, part):
    for suffix in ("svg", "png", "pdf"):
        outputs = [tmp_path / f"{name}.{suffix}" for name in "ab"]
        for output in outputs:
            stores.draw(part, output)
        first, second = (output.read_bytes() for output in outputs)
        assert first == second
        assert b"dc:date" not in first and b"CreationDate" not in first
    with Image.open(tmp_path / "a.png") as image:
        assert image.width > 1200 and image.getextrema() != ((255, 255),) * 4


def test_a_users_matplotlibrc_changes_nothing(stores, tmp_path):
    import matplotlib

    plain = stores.draw("train", tmp_path / "a.svg")
    with matplotlib.rc_context({"lines.linewidth": 9, "font.size": 30}):
        assert stores.draw("train", tmp_path / "b.svg") == plain
        assert matplotlib.rcParams["font.size"] == 30


def test_hostile_words_elsewhere_are_escaped(tmp_path):
    manifest = image_store(tmp_path / "images" / "a-00000", 3)
    values = read_json(manifest)
    del values["checksum"], values["fingerprint"]
    values["counts"]["<b>odd</b> $x^$"] = 2
    values["rows"] = 5
    values["chunk"] = "<i>chunk</i>$_$"
    change_record(manifest, **values, fingerprint=fingerprint(values))
    html = download.draw(Report(), [str(manifest)]).html()
    assert "<b>odd" not in html and "&lt;b&gt;odd" in html and "<i>chunk" not in html
    scores = tmp_path / "summary.csv"
    csv_table(scores, "model,dataset,metric,value,seed\n<u>m</u>,<s>d</s>,$\\frac,0.5,0\n")
    html = results.draw(Report(), str(scores)).html()
    assert "<u>" not in html and "<s>" not in html


def test_a_page_over_the_limit_is_written_with_a_warning(tmp_path, caplog):
    drawing = page.Drawing("title", "lead", "x" * page.LIMIT)
    LOGGER.addHandler(caplog.handler)
    with caplog.at_level(logging.WARNING):
        page.write([str(tmp_path / "a.html")], drawing)
    LOGGER.removeHandler(caplog.handler)
    assert "browsers may show nothing" in caplog.text
    assert (tmp_path / "a.html").stat().st_size > page.LIMIT


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--part", "cluster", "--output", "a.html"], "--centroids: needed for --part cluster"),
        (["--part", "train", "--metrics", "m", "--output", "a.gif"], "a.gif: end it with one of"),
        (["--part", "train", "--metrics", "none.jsonl", "--output", "a.html"], "none.jsonl: no"),
    ],
)
def test_a_users_mistake_is_one_line(words, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["report", *words]) == 2
    said = capsys.readouterr().err.strip()
    assert message in said and "\n" not in said
    assert list(tmp_path.iterdir()) == []


def test_parts_without_a_chart_or_numbers_say_so(stores, tmp_path, capsys):
    for part, suffix in (("montage", "svg"), ("train", "json")):
        words = [*stores.options(part), "--output", str(tmp_path / f"a.{suffix}")]
        assert main(words) == 2
        assert "ask for .html" in capsys.readouterr().err


def test_label_page_follows_the_summary(stores, tmp_path):
    html = stores.draw("label", tmp_path / "l.html")
    summary = read_json(stores.summary)
    mean = summary["use_as_any_label"]["mean"]
    assert mean == len(CHUNKS) * N * L / K and f"{mean:,.1f} images on average" in html
    write_record(tmp_path / "s.json", {"num_classes": 3})
    assert main(["report", "--part", "label", "--summary", str(tmp_path / "s.json"),
                 "--output", str(tmp_path / "x.html")]) == 2  # fmt: skip


def test_cluster_page_counts_and_warns_of_empty_clusters(stores, tmp_path):
    html = stores.draw("cluster", tmp_path / "c.html")
    assert f"{len(CHUNKS) * N} images in {K} clusters" in html
    assert ["objective, first → last", "0.4000 → 0.6100"] in cells(html)
    empty = int((np.bincount(stores.label[:, 0], minlength=K) == 0).sum())
    assert ("clusters are empty" in html) == bool(empty)


def test_curate_page_shows_pairs_and_reasons_as_text(stores, tmp_path):
    html = stores.draw("curate", tmp_path / "c.html")
    assert "24 of 30 images kept" in html
    assert ["duplicate", "3", "10.0%"] in cells(html) and ["all", "30", "100.0%"] in cells(html)
    # The least alike first.
    assert html.index("similarity 0.950") < html.index("similarity 0.970")
    assert "<script>" not in html and "&lt;script&gt;" in html
