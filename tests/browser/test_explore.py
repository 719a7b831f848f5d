"""The page of `mlcd explore` in a browser: it shows, is used by keys, and asks nobody else.

MLCD_SHOTS=FOLDER pytest tests/browser/test_explore.py    leaves screenshots there
"""

from __future__ import annotations

import base64
import os
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch

from helpers import browser
from helpers.explore_runs import HOSTILE, ExploreRun, K, N, opened, served
from mlcd.commands.explore.export import export
from mlcd.commands.explore.server import UPLOAD

pytestmark = pytest.mark.skipif(bool(browser.missing()), reason=browser.missing())

ENTER, ESCAPE, RIGHT, DOWN = "\ue007", "\ue00c", "\ue014", "\ue015"
CARDS = "return document.querySelectorAll('#content .card').length"
TITLE = "return document.querySelector('#content h1')?.innerText"
FOCUSED = "return document.activeElement.dataset.cluster ?? document.activeElement.dataset.row"
LOADED = (
    "const images = [...document.querySelectorAll('#content img')];"
    "return images.length && images.every(image => image.complete && image.naturalWidth)"
)
#: Share of the canvas that something is drawn on.
DRAWN = """
const canvas = document.querySelector('#canvas');
const data = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data;
let count = 0;
for (let i = 3; i < data.length; i += 4) count += data[i] > 0;
return count;
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    torch.set_num_threads(1)
    return ExploreRun(tmp_path_factory.mktemp("explore") / "results")


@pytest.fixture(scope="module")
def server(run, tmp_path_factory):
    with served(run.results, tmp_path_factory.mktemp("index")) as server:
        yield server


@pytest.fixture(scope="module")
def window():
    with browser.Browser() as window:
        yield window


def visit(window: browser.Browser, server, address: str, *, width: int = 1280, dark: bool = False):
    window.look(width, 800, dark=dark)
    window.visit("about:blank")
    window.visit(f"{server.url}{address}")
    assert window.wait("return document.querySelector('#content h1, #content .note')")


def check(window: browser.Browser, server) -> None:
    """No error on the console, and no request but to the server."""
    assert window.errors() == []
    hosts = {urlsplit(url).netloc for url in window.requests()}
    assert hosts == {f"127.0.0.1:{server.port}"}


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 500])
def test_clusters_and_their_images_show(run, server, window, width, dark):
    for address in ("#/", f"#/cluster/{run.label[0, 0]}"):
        visit(window, server, address, width=width, dark=dark)
        assert window.wait(LOADED)
        # Nothing stands beside the window.
        wide = "return document.documentElement.scrollWidth <= innerWidth"
        assert window.run(wide)
        if width == 500:
            window.run("document.querySelector('#tab-map').click()")
        assert window.wait(f"{DRAWN.replace('return count', 'return count > 300')}")
        if folder := os.environ.get("MLCD_SHOTS"):
            name = f"explore-{address.strip('#/').replace('/', '-')}-{width}-{dark}.png"
            window.screenshot(Path(folder) / name)
    check(window, server)


def test_it_is_used_by_keys_alone(run, server, window):
    visit(window, server, "#/")
    assert window.run(CARDS) == K
    window.press(DOWN)
    first = window.run(FOCUSED)
    window.press(RIGHT)
    assert first is not None and window.run(FOCUSED) not in (None, first)
    chosen = window.run(FOCUSED)
    window.press(ENTER)
    assert window.wait(f"{TITLE} == 'Cluster {chosen}'")
    # From nowhere the first grid is entered, then the one below: images.
    window.run("document.activeElement.blur()")
    window.press(DOWN, DOWN)
    assert window.wait("return document.activeElement.matches('.tile')")
    window.press(ENTER)
    assert window.wait("return document.querySelector('dialog').open")
    window.press(ESCAPE)
    assert window.wait("return !document.querySelector('dialog').open")
    window.run("document.activeElement.blur()")
    window.press(ESCAPE)
    assert window.wait(f"{CARDS} == {K}")
    window.press("/")
    window.press("3", ENTER)
    assert window.wait(f"{TITLE} == 'Cluster 3'")
    check(window, server)


def test_hostile_captions_are_text(run, server, window):
    cluster = int(run.label[0, 0])
    visit(window, server, f"#/cluster/{cluster}?words=zebra")
    assert window.wait("return document.querySelector('.tile')")
    window.run('document.querySelector(\'.tile[data-chunk="0"][data-row="0"]\').click()')
    assert window.wait("return document.querySelector('dialog .said')?.innerText") == HOSTILE
    assert window.run("return document.querySelectorAll('script').length") == 1
    check(window, server)


def test_words_and_an_image_find_clusters(run, server, window):
    visit(window, server, "#/")
    window.press("/")
    window.press(*"bus", ENTER)
    assert window.wait(f"{TITLE} == '“bus”'")
    said = window.run("return [...document.querySelectorAll('h2')].map(h => h.innerText)")
    assert said[0].startswith("By captions") and said[1].startswith("By tiny-clip")
    number = 30
    data = base64.b64encode(run.images[number]).decode()
    window.run(
        """
        const data = Uint8Array.from(atob(arguments[0]), (each) => each.charCodeAt(0));
        const transfer = new DataTransfer();
        transfer.items.add(new File([data], "query.jpg", { type: "image/jpeg" }));
        dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true }));
        """,
        data,
    )
    assert window.wait("return document.querySelector('h1').innerText.includes('Your image')")
    assert window.wait(LOADED)
    first = "const tile = document.querySelector('.tile').dataset; return [tile.chunk, tile.row]"
    assert window.run(first) == [str(number // 20), str(number % 20)]
    check(window, server)


def test_a_file_that_is_too_large_is_told_by_the_page(run, server, window):
    visit(window, server, "#/")
    drop = """
        const transfer = new DataTransfer();
        transfer.items.add(new File([new Uint8Array(arguments[0])], "large.jpg"));
        dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, bubbles: true }));
    """
    window.run(drop, UPLOAD + 1)
    assert window.wait("return document.querySelector('.note')?.innerText") == (
        "This file has more than 32 MiB."
    )
    check(window, server)


def test_the_map_opens_clusters_and_zooms(run, server, window):
    visit(window, server, "#/")
    assert window.wait(f"{DRAWN.replace('return count', 'return count > 300')}")
    window.run("document.querySelector('#canvas').focus()")
    before = window.run(DRAWN)
    window.press("+", "+", "+")
    assert window.wait(f"{DRAWN.replace('return count', 'return count != arguments[0]')}", before)
    window.press("0", ENTER)
    assert window.wait(f"{TITLE}?.startsWith('Cluster')")
    check(window, server)


def test_a_cluster_that_is_not_there_is_told(server, window):
    visit(window, server, f"#/cluster/{K}")
    assert "no cluster" in window.run("return document.querySelector('.note').innerText")
    window.errors()  # the browser logs the status of the answer


def test_exported_pages_show_without_a_server(run, window, tmp_path):
    looked, index, _, _ = opened(run.results, tmp_path / "index")
    export(looked, index, tmp_path, range(K), images=N, max_pixels=10**6)
    window.look(500, 800)
    window.requests()
    for name in ("index.html", "cluster-0.html"):
        window.open(tmp_path / name)
        shown = "return [...document.images].filter(image => image.naturalWidth).length"
        assert window.run(shown) == window.run("return document.images.length") > 0
        assert window.run("return document.documentElement.scrollWidth <= innerWidth")
    assert window.errors() == [] and window.requests() == []
