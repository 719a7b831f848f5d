"""The page of `mlcd search` in a browser."""

from __future__ import annotations

import pytest
import torch

from helpers import browser
from helpers.searches import GOOD, HOSTILE, search, write_images, write_models


@pytest.fixture
def models(tmp_path):
    torch.set_num_threads(1)
    return write_models(tmp_path / "models")


@pytest.fixture
def folder(tmp_path):
    return write_images(tmp_path / "images")


@pytest.mark.skipif(bool(browser.missing()), reason=browser.missing())
def test_the_page_of_nearest_images_shows(models, folder, tmp_path):
    page, kept = tmp_path / "page.html", tmp_path / "E.h5"
    queries = [folder / "z.jpg", folder / HOSTILE]
    common = ["--folder", folder, "--model", models / "train", "--output", page, "--count", 4]
    assert search(*queries, *common, "--embeddings", kept) == 0
    first = page.read_bytes()
    assert search(*queries, *common, "--embeddings", kept) == 0
    assert page.read_bytes() == first
    with browser.Browser() as window:
        window.open(page)
        assert window.wait("return [...document.images].every(image => image.complete)")
        lost = "return [...document.images].filter(image => !image.naturalWidth).length"
        assert window.run(lost) == 0
        assert window.run("return document.images.length") == 2 * (1 + 4)
        said = "return [...document.querySelectorAll('figcaption')].map(item => item.innerText)"
        captions = window.run(said)
        names = [caption.split("\n")[0] for caption in captions]
        # Each query lies in the folder: it is its own nearest. The name is text, not markup.
        assert names[0] == "z.jpg" and names[4] == HOSTILE
        assert captions[0].endswith("cosine 1.000")
        assert set(names) <= {key.decode() for key in GOOD}
        assert window.errors() == [] and window.requests() == []
