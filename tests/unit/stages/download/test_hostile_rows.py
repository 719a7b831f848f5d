"""One run of stage download over every kind of row that a hostile server can give."""

from __future__ import annotations

import hashlib
import tarfile
import time
from typing import Any

import pytest

from helpers.builders import jpeg
from helpers.download_runs import contents, download, image_of, states
from helpers.hostile_server import HostileServer, number_of
from helpers.url_lists import bad_strings, write_list
from mlcd.data.decode import decode
from mlcd.data.members import labeled_members
from mlcd.utils.files import sha256_file, sha256_json

#: Path on the server (or a whole URL) → reason, and the number of passes that try it.
HOSTILE = {
    "ok/1.jpg": ("", 1),
    "png/2.png": ("", 1),
    "webp/3.webp": ("", 1),
    "gif/4.gif": ("", 1),
    "phone/4.jpg": ("", 1),
    "moved/5.jpg": ("", 1),
    "flaky/6.jpg": ("", 2),
    "noai-them/7.jpg": ("", 1),
    "ok/../../../8.jpg": ("", 1),
    "ok/né ö.jpg": ("", 1),
    "missing/1.jpg": ("not_found", 1),
    "forbidden/1.jpg": ("refused", 1),
    "busy/1.jpg": ("throttled", 2),
    "broken/1.jpg": ("server_error", 2),
    "loop/1.jpg": ("redirects", 1),
    "file/passwd": ("redirects", 1),
    "reset/1.jpg": ("connection", 2),
    "short/1.jpg": ("connection", 2),
    "slow/1.jpg": ("timeout", 2),
    "drip/1.jpg": ("timeout", 2),
    "huge/1.jpg": ("too_large", 1),
    "empty/1.jpg": ("empty", 1),
    "html/1.jpg": ("not_an_image", 1),
    "truncated/1.jpg": ("damaged", 1),
    "bomb/1.png": ("too_large", 1),
    "small/1.jpg": ("too_small", 1),
    "noai/1.jpg": ("opted_out", 1),
    "noai-us/1.jpg": ("opted_out", 1),
    "ok/wrong-hash.jpg": ("hash_mismatch", 1),
    "ok/right-hash.jpg": ("", 1),
    "http://127.0.0.1:1/a.jpg": ("connection", 2),
    "http://nowhere.invalid/a.jpg": ("dns", 2),
    "file:///etc/passwd": ("bad_url", 0),
    "ftp://127.0.0.1/a.jpg": ("bad_url", 0),
    "": ("bad_url", 0),
    "gzip/1.jpg": ("", 1),
    "named-gzip/1.jpg": ("", 1),
    "gzip-bomb/1.jpg": ("too_large", 1),
    "gzip-cut/1.jpg": ("damaged", 1),
    "http://user:secret@127.0.0.1:1/a.jpg": ("credentials", 0),
}

LIMITS = {
    "timeout": 1, "transfer_timeout": 2, "min_image_size": 10, "max_bytes": 1_000_000,
    "min_success": 0.2, "rows_per_tar": 10,
}  # fmt: skip

#: What was asked for; no content of the chunk.
ASKED = ("request", "urls", "asked")


@pytest.fixture(scope="module")
def hostile(server: HostileServer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """One run over every kind of row; twice the first row, and captions of all kinds."""
    folder = tmp_path_factory.mktemp("hostile")
    paths = [*HOSTILE, "ok/1.jpg"]
    urls = [path if ":" in path or not path else server.url(path) for path in paths]
    hashes = [""] * len(paths)
    hashes[paths.index("ok/wrong-hash.jpg")] = "0" * 64
    right = jpeg(number_of("/right-hash.jpg"))
    hashes[paths.index("ok/right-hash.jpg")] = hashlib.sha256(right).hexdigest().upper()
    captions = [f"caption {row}".encode() for row in range(len(paths))]
    captions[1] = b"caf\xe9 \xff"
    captions[2] = b""
    table = {"row": range(len(paths)), "url": urls, "caption": bad_strings(captions)}
    lists = write_list(folder / "urls/a.parquet", **table, sha256=hashes)
    output = folder / "images/a"
    start = time.monotonic()
    store = download(lists, output, **LIMITS)
    took = time.monotonic() - start
    asked = server.asked.copy()
    return {
        "store": store, "list": lists, "output": output, "paths": paths, "urls": urls,
        "rows": store.table(), "took": took, "asked": asked,
    }  # fmt: skip


def test_every_row_has_its_reason(hostile: dict[str, Any]) -> None:
    rows = hostile["rows"]
    found = {
        path: (row.reason, row.passes)
        for path, row in zip(hostile["paths"], rows.itertuples(), strict=True)
    }
    # A machine whose name service does not answer in time says so in its own way.
    name = "http://nowhere.invalid/a.jpg"
    assert found[name][0] in ("dns", "timeout", "connection")
    assert found | {name: HOSTILE[name]} == HOSTILE
    assert rows["row"].tolist() == list(range(len(rows)))
    assert rows["url"].tolist() == [url.replace("user:secret@", "***@") for url in hostile["urls"]]
    assert (rows["status"] == "success").tolist() == (rows["reason"] == "").tolist()
    assert (rows["tar"] >= 0).tolist() == (rows["reason"] == "").tolist()
    assert hostile["took"] < 60


def test_permanent_failures_are_asked_once(hostile: dict[str, Any]) -> None:
    asked = hostile["asked"]
    for path in ("missing/1.jpg", "html/1.jpg", "bomb/1.png", "noai/1.jpg", "truncated/1.jpg"):
        assert asked[f"/{path}"] == 1, path
    for path in ("broken/1.jpg", "flaky/6.jpg", "reset/1.jpg", "drip/1.jpg"):
        assert asked[f"/{path}"] == 2, path
    assert asked["/ok/1.jpg"] == 2  # in the list twice
    assert asked["/ok/../../../8.jpg"] == 1
    assert asked["/ok/n%C3%A9%20%C3%B6.jpg"] == 1


def test_our_agent_is_named(hostile: dict[str, Any], server: HostileServer) -> None:
    assert server.agents
    assert all("mlcd" in agent for agent in server.agents)


def test_manifest_counts_and_hashes(hostile: dict[str, Any]) -> None:
    store, rows, output = hostile["store"], hostile["rows"], hostile["output"]
    manifest = store.manifest
    expected = rows["reason"].replace("", "success").value_counts().to_dict()
    assert manifest["counts"] == expected
    assert manifest["rows"] == len(rows) == sum(manifest["counts"].values())
    assert manifest["chunk"] == "a"
    assert [tar["name"] for tar in manifest["tars"]] == [f"{k:05d}.tar" for k in range(5)]
    for index, tar in enumerate(manifest["tars"]):
        assert tar["sha256"] == sha256_file(output / tar["name"])
        assert tar["images"] == (rows["tar"] == index).sum()
    assert manifest["table"] == sha256_file(output / "rows.parquet")
    content = {k: v for k, v in manifest.items() if k not in ("fingerprint", *ASKED)}
    assert manifest["fingerprint"] == sha256_json(content)
    assert sorted(path.name for path in output.iterdir()) == sorted(
        ["manifest.json", "rows.parquet", *(tar["name"] for tar in manifest["tars"])]
    )
    assert states(output) == []


def test_tars_hold_the_bytes_as_served(hostile: dict[str, Any], server: HostileServer) -> None:
    store, rows = hostile["store"], hostile["rows"]
    arrived = rows[rows["reason"] == ""]
    assert len(arrived) == 14
    for row in arrived.itertuples():
        data = image_of(store, row)
        assert row.tar == row.row // LIMITS["rows_per_tar"]
        assert hashlib.sha256(data).hexdigest() == row.sha256
        assert decode(data, max_pixels=10_000).size == (row.width, row.height)
        if "/ok/" in row.url and row.url.isascii():
            assert data == jpeg(number_of(row.url))
    first, last = arrived.iloc[0], arrived.iloc[-1]
    assert first.url == last.url
    assert first.sha256 == last.sha256


def test_tars_are_plain_ustar_in_the_order_of_rows(hostile: dict[str, Any]) -> None:
    rows = hostile["rows"]
    endings = {1: "png", 2: "webp", 3: "gif"}
    for index, path in enumerate(hostile["store"].tars):
        expected = []
        for row in rows[rows["tar"] == index].itertuples():
            expected += [f"{row.key}.{endings.get(row.row, 'jpg')}", f"{row.key}.json"]
        with tarfile.open(path) as tar:
            members = tar.getmembers()
        assert [member.name for member in members] == expected
        for member in members:
            assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
            assert member.pax_headers == {}
    fields = {key: inner for key, _, inner in labeled_members(hostile["store"].tars[0])}
    assert fields["000000001"]["caption"] == "caf� �"
    assert fields["000000002"]["caption"] == ""
    assert list(fields["000000008"]) == ["key", "url", "caption", "sha256", "width", "height"]
    assert rows["caption"][1] == "caf� �"


def test_a_complete_chunk_is_left_alone(hostile: dict[str, Any], server: HostileServer) -> None:
    before, asked = contents(hostile["output"]), server.asked.total()
    download(hostile["list"], hostile["output"], **LIMITS)
    assert contents(hostile["output"]) == before
    assert server.asked.total() == asked
    assert states(hostile["output"]) == []
