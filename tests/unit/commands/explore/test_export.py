"""`mlcd explore --export`: pages that need nothing, and replace nothing of others."""

from __future__ import annotations

import pytest

from helpers.explore_runs import HOSTILE, K
from helpers.refusals import refused
from helpers.report_stores import Outline
from mlcd.cli import main
from mlcd.commands.explore.export import parse_clusters
from mlcd.utils.errors import UserError


def export(explored, folder, *words: str) -> int:
    return main(["explore", str(explored.results), "--index", str(folder / "index"),
                 "--export", str(folder / "pages"), *words])  # fmt: skip


def test_pages_hold_all_that_they_show(explored, tmp_path):
    assert export(explored, tmp_path, "--clusters", f"0-{K - 1}") == 0
    pages = sorted((tmp_path / "pages").iterdir())
    assert [page.name for page in pages] == [*(f"cluster-{c}.html" for c in range(K)), "index.html"]
    images = 0
    for page in pages:
        outline = Outline(page.read_text())
        assert "script" not in outline.tags
        links = [where for where in outline.addresses if not where.startswith("data:image/webp")]
        assert all((tmp_path / "pages" / link).exists() for link in links)
        images += outline.tags.count("img")
        assert HOSTILE not in page.read_text()
    assert images > 60
    cluster = explored.label[0, 0]
    text = (tmp_path / "pages" / f"cluster-{cluster}.html").read_text()
    assert HOSTILE in "".join(Outline(text).words)
    before = [page.read_bytes() for page in pages]
    assert export(explored, tmp_path, "--clusters", f"0-{K - 1}") == 0
    assert [page.read_bytes() for page in pages] == before


def test_images_per_page_are_as_many_as_asked_for(explored, tmp_path):
    assert export(explored, tmp_path, "--clusters", "0", "--images", "2") == 0
    text = (tmp_path / "pages" / "cluster-0.html").read_text()
    assert Outline(text).tags.count("figure") == 2


def test_a_file_of_others_is_never_replaced(explored, tmp_path, capsys):
    (tmp_path / "pages").mkdir()
    mine = tmp_path / "pages" / "cluster-1.html"
    mine.write_text("<p>mine</p>")
    assert export(explored, tmp_path, "--clusters", "0-2") == 2
    refused(capsys, "cluster-1.html", "was not written by mlcd")
    assert mine.read_text() == "<p>mine</p>"
    assert [path.name for path in mine.parent.iterdir()] == [mine.name]


def test_clusters_are_numbers_and_ranges():
    assert parse_clusters(["3", "17", "20-23", "3"], 30) == [3, 17, 20, 21, 22, 23]
    for word in ("30", "5-3", "x", "-1", "1-", "1,2", "29-30", "9" * 20):
        with pytest.raises(UserError, match="--clusters"):
            parse_clusters([word], 30)
