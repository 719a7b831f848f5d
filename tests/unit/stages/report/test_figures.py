"""The page of figures from outside of the run: data of someone else, shown and not believed."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from helpers.report_stores import FIGURE, Outline
from mlcd.cli import main
from mlcd.config import Config, Report, validate
from mlcd.data import own_figures
from mlcd.stages.report import figures
from mlcd.utils.errors import UserError

SVG = '<svg xmlns="http://www.w3.org/2000/svg">'


def page(*paths, **keys) -> str:
    """Return the page of some figures."""
    section = Report(figures=[str(path) for path in paths], **keys)
    return figures.draw(section).html()


def images(html: str) -> list[tuple[str, bytes]]:
    """Return kind and bytes of each image of a page."""
    found = re.findall(r'<img src="data:image/([a-z+]+);base64,([^"]+)"', html)
    return [(kind, base64.b64decode(data)) for kind, data in found]


def test_an_svg_is_shown_as_an_image_with_its_hash(tmp_path):
    path = tmp_path / "a study.svg"
    path.write_text(FIGURE)
    html = page(path)
    # As a part of the page its script would run; as an image it does not.
    assert images(html) == [("svg+xml", FIGURE.encode())]
    assert "script" not in Outline(html).tags
    assert "a study.svg" in html and hashlib.sha256(FIGURE.encode()).hexdigest() in html
    assert str(tmp_path) not in html


def test_images_are_encoded_anew_and_made_smaller(tmp_path):
    path = tmp_path / "wide.png"
    pixels = np.zeros((40, 2000, 3), np.uint8)
    pixels[:, :1000] = (200, 30, 30)
    Image.fromarray(pixels).save(path)
    with path.open("ab") as file:
        file.write(b"<script>alert(1)</script>")
    ((kind, data),) = images(page(path))
    assert kind == "webp" and b"script" not in data
    with Image.open(io.BytesIO(data)) as shown:
        assert shown.size == (1600, 32)
        left, right = (np.array(shown.convert("RGB").getpixel((x, 16))) for x in (300, 1300))
    assert np.abs(left - (200, 30, 30)).max() < 12 and right.max() < 12


def test_figures_keep_their_order_and_names_are_escaped(tmp_path):
    names = ["b&<b>.svg", "a.SVG"]
    for name in names:
        (tmp_path / name).write_text(FIGURE.replace("teal", "red" if name == names[0] else "tan"))
    html = page(*(tmp_path / name for name in names))
    assert [b"red" in data for _, data in images(html)] == [True, False]
    assert "b&amp;&lt;b&gt;.svg" in html and "<b>" not in html
    assert "2 figures from outside of the run" in html


@pytest.mark.parametrize(
    ("name", "data", "told"),
    [
        ("a.pdf", b"%PDF", "ends in none of .svg, .png, .jpg, .jpeg, .webp; save it as one of"),
        ("a.svg", None, "is no file that can be read; correct it"),
        ("a.svg", b"<html></html>", r"is no SVG that browsers show \(its root is 'html'\); save"),
        ("a.svg", b"<svg></svg>", r"is no SVG that browsers show \(its root is 'svg'\); save"),
        ("a.svg", f"<html>{SVG}</svg></html>".encode(), "is no SVG that browsers show"),
        ("a.svg", SVG.encode(), r"is no SVG that browsers show \(no element found"),
        ("a.svg", b"", r"is no SVG that browsers show \(no element found"),
        ("a.svg", f'<!DOCTYPE svg [<!ENTITY a "aa">]>{SVG}&a;</svg>'.encode(),
         r"is no SVG that browsers show \(it declares entities"),
        ("a.svg", b"<svg>" + bytes(own_figures.MOST_SVG), "has 1000005 bytes, and 1000000 fit"),
    ],
)  # fmt: skip
def test_what_is_no_figure_is_told_before_any_work(tmp_path, monkeypatch, name, data, told):
    from mlcd.data import at_start

    monkeypatch.chdir(tmp_path)
    if data is not None:
        (tmp_path / name).write_bytes(data)
    config = validate(Config, {"report": {"figures": name}}, "mine.yaml")
    with pytest.raises(UserError, match=f"mine.yaml: report.figures: '{name}' {told}"):
        at_start.check(config, "mine.yaml", dict)
    with pytest.raises(UserError, match=f"report.figures: '{name}' {told}"):
        page(name)


def test_a_folder_or_a_pipe_is_no_figure(tmp_path):
    import os

    (tmp_path / "folder.svg").mkdir()
    os.mkfifo(tmp_path / "pipe.svg")
    for name in ("folder.svg", "pipe.svg"):
        assert "is no file that can be read" in own_figures.problem(str(tmp_path / name))


def test_an_image_that_does_not_decode_is_one_line(tmp_path, capsys):
    for name, data in (("no.png", b"no image"), ("huge.png", None)):
        path = tmp_path / name
        if data is None:
            Image.new("L", (300, 300)).save(path)
        else:
            path.write_bytes(data)
        words = ["--max-pixels", "80000", "--figures", str(path)]
        output = tmp_path / "page.html"
        assert main(["report", "--part", "figures", *words, "--output", str(output)]) == 2
        said = capsys.readouterr().err
        assert f"report.figures: '{path}': " in said and "Traceback" not in said
        assert not output.exists()


def test_more_than_a_page_holds_is_refused(tmp_path):
    path = tmp_path / "large.svg"
    path.write_text(f"{SVG}{' ' * 800_000}</svg>")
    assert page(path)
    with pytest.raises(UserError, match=r"report.figures: \d+ bytes of a page, and \d+ fit"):
        page(path, path)


def test_jobs_do_not_look_at_figures_again(tmp_path, monkeypatch):
    """One that is moved while a run of days works stops none of its jobs."""
    from mlcd.data import at_start

    monkeypatch.chdir(tmp_path)
    config = validate(
        Config, {"report": {"figures": "gone.svg"}, "evaluate": {"datasets": []}}, "mine.yaml"
    )
    assert at_start.check(config, "mine.yaml", dict, look=False) == {}


@pytest.mark.parametrize("name", ["two\nlines.svg", "b\udcff.svg"])
def test_names_that_no_page_can_hold_are_refused(name):
    with pytest.raises(UserError, match=r"report.figures: .*: expected a path of characters"):
        validate(Config, {"report": {"figures": name}}, "mine.yaml")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_any_encoding_and_a_long_preface_are_taken(tmp_path, encoding):
    path = tmp_path / "a.svg"
    preface = f"<?xml version='1.0' encoding='{encoding}'?><!-- {'x' * 9000} -->"
    path.write_bytes(f"{preface}{SVG}</svg>".encode(encoding))
    assert own_figures.problem(str(path)) is None


def test_no_other_page_and_no_identity_knows_of_figures():
    plain, other = Report(), Report(figures=["a.svg"])
    assert plain.to_json() == other.to_json() and plain.sealed() == other.sealed()
    assert "figures" not in json.loads(plain.to_json())
    assert plain.for_figures() != other.for_figures()


def test_without_figures_the_page_says_so():
    with pytest.raises(UserError, match=r"report.figures: names no figure; give paths"):
        figures.draw(Report())
