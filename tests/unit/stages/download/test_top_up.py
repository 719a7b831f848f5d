"""A finished chunk is topped up: what failed for a reason that may pass is tried again."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from helpers.download_runs import contents, download, image_of, states
from helpers.hostile_server import HostileServer
from helpers.url_lists import write_list
from mlcd.data.image_store import ImageStore
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER

KEYS = {"min_success": 0.1, "rows_per_tar": 4, "passes": 1}
#: The second tar has all that it can have.
KINDS = ["ok", "flaky", "missing", "ok", "ok", "missing", "png", "ok", "flaky", "html", "ok"]


@pytest.fixture
def urls(server: HostileServer, tmp_path: Path) -> Path:
    names = [server.url(f"{kind}/{tmp_path.name}-{row}.jpg") for row, kind in enumerate(KINDS)]
    return write_list(tmp_path / "urls/a.parquet", url=names)


def test_what_arrives_now_is_added(
    urls: Path,
    tmp_path: Path,
    server: HostileServer,
    caplog: pytest.LogCaptureFixture,
) -> None:
    target, whole = tmp_path / "images/a", tmp_path / "whole/a"
    first = download(urls, target, **KEYS)
    assert first.manifest["counts"]["server_error"] == 2
    old = (target / "00001.tar").stat()
    fingerprint = first.fingerprint
    asked = server.asked.total()
    LOGGER.addHandler(caplog.handler)
    with caplog.at_level(logging.INFO, logger="mlcd"):
        store = download(urls, target, top_up=True, **{**KEYS, "timeout": 7})
    assert server.asked.total() == asked + 2
    assert store.manifest["counts"] == {"success": 8, "not_an_image": 1, "not_found": 2}
    assert "are its embeddings and labels" in caplog.text and store.fingerprint != fingerprint
    assert store.changed() is None and states(target) == []
    # The tar that gains nothing is the very file.
    assert (target / "00001.tar").stat() == old
    for row in store.table()[lambda frame: frame.status == "success"].itertuples():
        assert image_of(store, row)
    assert store.table()["passes"].tolist() == [1, 2, 1, 1, 1, 1, 1, 1, 2, 1, 1]
    # The server is well now: a download of today has the same images in the same bytes.
    assert download(urls, whole, **KEYS).manifest["tars"] == store.manifest["tars"]
    # All is done, for the stage and for another top-up.
    before = contents(target)
    download(urls, target, **KEYS)
    download(urls, target, top_up=True, **KEYS)
    assert contents(target) == before


def test_a_kill_while_files_are_put_in_place_is_repaired(
    urls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "images/a"
    download(urls, target, **KEYS)
    move = Path.replace

    def killed(self: Path, to: Path) -> Path:
        if self.parent.name == "sealed" and self.name == "00002.tar":
            raise KeyboardInterrupt
        return move(self, to)

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        download(urls, target, top_up=True, **KEYS)
    monkeypatch.setattr(Path, "replace", move)
    assert ImageStore(target).changed() == target / "00000.tar"
    # As Snakemake does before it runs the rule again.
    (target / "manifest.json").unlink()
    (target / "rows.parquet").unlink()
    store = download(urls, target, **KEYS)
    assert store.manifest["counts"]["success"] == 8 and store.changed() is None


def test_nothing_new_changes_nothing(server: HostileServer, tmp_path: Path) -> None:
    names = [server.url(f"{kind}/{row}-n.jpg") for row, kind in enumerate(["ok", "broken"])]
    urls = write_list(tmp_path / "urls/a.parquet", url=names)
    target = tmp_path / "images/a"
    download(urls, target, **KEYS)
    before = contents(target)
    download(urls, target, top_up=True, **KEYS)
    assert contents(target) == before and states(target) == []


def test_other_lists_and_keys_are_refused(urls: Path, tmp_path: Path) -> None:
    target = tmp_path / "images/a"
    with pytest.raises(UserError, match="no finished chunk"):
        download(urls, target, top_up=True, **KEYS)
    download(urls, target, **KEYS)
    before = contents(target)
    with pytest.raises(UserError, match="other keys of the section download"):
        download(urls, target, top_up=True, **{**KEYS, "image_size": 32})
    with pytest.raises(UserError, match="other keys of the section download"):
        download(urls, target, top_up=True, **{**KEYS, "rows_per_tar": 5})
    other = tmp_path / "other"
    other.mkdir()
    names = [f"http://127.0.0.1:9/{row}.jpg" for row in range(len(KINDS))]
    with pytest.raises(UserError, match="not the list of"):
        download(write_list(other / "a.parquet", url=names), target, top_up=True, **KEYS)
    assert contents(target) == before
