"""The page "Audit" in a headless Chromium: boxes open, lines meet the boxes, nothing is fetched."""

from __future__ import annotations

from pathlib import Path

import pytest

from helpers import browser
from mlcd.commands.audit import page
from mlcd.commands.audit.nodes import CONTENT, Node

pytestmark = [
    pytest.mark.workflow,
    pytest.mark.skipif(bool(browser.missing()), reason=browser.missing()),
]

#: Of each box: whether its summary is as high as the lines' dot, and whether its files show.
_BOXES = """
return [...document.querySelectorAll('.link')].map(link => {
  const middle = rect => (rect.top + rect.bottom) / 2;
  const dot = link.querySelector('circle[r="6"]').getBoundingClientRect();
  const box = link.querySelector('summary').getBoundingClientRect();
  const rest = link.querySelector('.gutter').getBoundingClientRect().bottom;
  const shown = link.querySelector('.files').checkVisibility();
  return [middle(dot) - middle(box), shown, rest - link.getBoundingClientRect().bottom];
});
"""
_WIDE = "return document.documentElement.scrollWidth - innerWidth"


def node(path: str, stage: str, digit: str, *inputs: str) -> Node:
    return Node(path, stage, digit * 64, CONTENT, 10, tuple(word * 64 for word in inputs))


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    nodes = [
        node("urls/a-00000.json", "prepare", "0"),
        node("images/a-00000/manifest.json", "download", "1", "0"),
        node("embeddings/a-00000.h5", "embed", "2", "1"),
        node("clusters/centroids.h5", "cluster", "3", "2"),
        node("labels/a-00000.h5", "label", "4", "2", "3"),
        node(f"train/{'long-' * 40}encoder.safetensors", "train", "5", "1", "3", "4"),
        node("export/timm/check.json", "export", "6", "5"),
    ]
    stages = {"train": {"section": {"key": "long " * 60}, "code": "c" * 16, "how": {"ranks": 2}}}
    entry = {"name": "a.parquet", "hash": "f" * 64, "of": "bytes", "bytes": 9}
    lock = {"root": "ab" * 32, "inputs": [entry], "stages": stages, "not_locked": []}
    path = tmp_path_factory.mktemp("page") / "chain.html"
    path.write_text(page.html(lock, {one.path: one for one in nodes}, {}), encoding="utf-8")
    return path


@pytest.mark.parametrize("width", [1280, 500])
def test_boxes_open_beside_their_lines(path, width):
    with browser.Browser(width, 900) as window:
        window.open(path)
        assert window.run(_WIDE) <= 0
        closed = window.run(_BOXES)
        assert len(closed) == 8
        assert all(abs(offset) <= 2 and not shown for offset, shown, _ in closed)
        window.run("document.querySelectorAll('summary').forEach(one => one.click())")
        opened = window.run(_BOXES)
        # The lines lead to the end of each open box.
        assert all(abs(offset) <= 2 and shown and abs(rest) < 1 for offset, shown, rest in opened)
        assert window.run(_WIDE) <= 0
        assert (window.errors(), window.requests()) == ([], [])
