"""The documentation as a site: built as `make docs` does, then opened from its folder."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from helpers import browser

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_every_page_of_the_navigation_is_built(site):
    pages = {
        path.relative_to(ROOT / "docs").with_suffix(".html") for path in ROOT.glob("docs/**/*.md")
    }
    assert len(pages) > 30
    assert not [str(page) for page in sorted(pages) if not (site / page).is_file()]


@pytest.mark.skipif(bool(browser.missing()), reason=browser.missing())
def test_the_site_shows_without_network(site):
    with browser.Browser() as window:
        for page in ("index.html", "reference/config.html", "reference/api/losses.html"):
            window.open(site / page)
            assert window.run("return document.querySelector('h1').innerText.length") > 3
            lost = "return [...document.images].filter(image => !image.naturalWidth).length"
            assert window.wait("return [...document.images].every(image => image.complete)")
            assert window.run(lost) == 0
            assert [url for url in window.requests() if not url.startswith("file:")] == []
        # The API page holds signatures that were read from the sources.
        assert "cluster_loss" in window.run("return document.body.innerText")
        assert window.run("return document.querySelectorAll('nav a').length") > 20
