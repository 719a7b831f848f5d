"""Whole runs of stage download against a hostile server on the loopback interface."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import jpeg
from hostile_server import HostileServer, number_of
from test_download import bad_strings, write_list

from mlcd.config import Download
from mlcd.download import run
from mlcd.errors import UserError
from mlcd.files import sha256_file, sha256_json
from mlcd.images import decode
from mlcd.stores.images import ImageStore, labelled_members

SOURCE = str(Path(__file__).parent.parent / "src")


@pytest.fixture(scope="module")
def server() -> Iterator[HostileServer]:
    patch = pytest.MonkeyPatch()
    patch.setenv("no_proxy", "127.0.0.1")
    with HostileServer() as running:
        yield running
    patch.undo()


def download(urls: Path, output: Path, processes: int = 1, **keys: Any) -> ImageStore:
    """Run the stage in this process (img2dataset in its own) and open the result."""
    arguments = argparse.Namespace(
        urls=str(urls), output=str(output), processes=processes, threads=8
    )
    run(arguments, Download(**{"timeout": 5, "backoff": 0.1, "passes": 2, **keys}))
    return ImageStore(output)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: sha256_file(path) for path in sorted(folder.iterdir())}


def states(output: Path) -> list[Path]:
    return sorted((output.parent / "state").glob(f"{output.name}-*"))


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
}
LIMITS = {
    "timeout": 1, "transfer_timeout": 2, "min_image_size": 10, "max_bytes": 1_000_000,
    "min_success": 0.2, "rows_per_tar": 10,
}  # fmt: skip


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
    assert rows["url"].tolist() == hostile["urls"]
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
    assert [tar["name"] for tar in manifest["tars"]] == [f"{k:05d}.tar" for k in range(4)]
    for index, tar in enumerate(manifest["tars"]):
        assert tar["sha256"] == sha256_file(output / tar["name"])
        assert tar["pictures"] == (rows["tar"] == index).sum()
    assert manifest["table"] == sha256_file(output / "rows.parquet")
    content = {k: v for k, v in manifest.items() if k not in ("fingerprint", "request")}
    assert manifest["fingerprint"] == sha256_json(content)
    assert sorted(path.name for path in output.iterdir()) == sorted(
        ["manifest.json", "rows.parquet", *(tar["name"] for tar in manifest["tars"])]
    )
    assert states(output) == []


def test_tars_hold_the_bytes_as_served(hostile: dict[str, Any], server: HostileServer) -> None:
    store, rows = hostile["store"], hostile["rows"]
    arrived = rows[rows["reason"] == ""]
    assert len(arrived) == 12
    for row in arrived.itertuples():
        data = store.read(row.tar, row.offset, row.size)
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
    fields = {key: inner for key, _, inner in labelled_members(hostile["store"].tars[0])}
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


def test_killed_run_goes_on_and_ends_with_the_same_bytes(
    server: HostileServer, tmp_path: Path
) -> None:
    kinds = ["pause", "pause", "ok", "missing", "truncated", "png"]
    urls = [server.url(f"{kinds[row % len(kinds)]}/{row}-k.jpg") for row in range(700)]
    lists = write_list(tmp_path / "urls/a.parquet", url=urls)
    calm, killed = tmp_path / "calm/a", tmp_path / "killed/a"
    keys = {"min_success": 0.2, "rows_per_tar": 64}
    download(lists, calm, processes=2, **keys)
    server.asked.clear()

    section = json.dumps({"timeout": 5, "backoff": 0.1, "passes": 2, **keys})
    command = [sys.executable, "-m", "mlcd", "download", "--urls", str(lists), "--output",
               str(killed), "--processes", "1", "--threads", "8", "--config", section]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": SOURCE}
    process = subprocess.Popen(command, env=environment, start_new_session=True)
    until = time.monotonic() + 90
    try:
        # Amidst the second shard: the first has its proof.
        while not list(killed.parent.glob("state/a-*/pass-01/shards/00001.tar")):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        time.sleep(0.2)
        family = psutil.Process(process.pid).children(recursive=True)
        assert family
    finally:
        # Only the parent is killed: its children must notice.
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    _, left = psutil.wait_procs(family, timeout=10)
    assert left == []
    assert not (killed / "manifest.json").exists()
    [state] = states(killed)
    assert [path.name for path in (state / "pass-01/proof").iterdir()] == ["00000.parquet"]

    subprocess.run(command, env=environment, check=True, timeout=120)
    assert contents(killed) == contents(calm)
    first = [urls[row].rpartition(":")[2].partition("/")[2] for row in range(350)]
    assert all(server.asked[f"/{path}"] == 1 for path in first)
    assert states(killed) == []


def test_too_few_rows_fail_and_a_rerun_mends(server: HostileServer, tmp_path: Path) -> None:
    paths = [f"ok/{row}-m.jpg" for row in range(6)]
    paths += [f"flaky/{row}-m.jpg" for row in range(3)] + ["missing/m.jpg"]
    lists = write_list(tmp_path / "urls/a.parquet", url=[server.url(path) for path in paths])
    output = tmp_path / "images/a"
    keys = {"passes": 1, "min_success": 0.8}
    with pytest.raises(UserError) as error:
        download(lists, output, **keys)
    message = str(error.value)
    assert "6 of 10 rows arrived (60.0%)" in message
    assert "success 6, server_error 3, not_found 1" in message
    assert "rerun to try 3 of them again" in message
    assert not (output / "manifest.json").exists()

    with pytest.raises(UserError, match=r"9 of 10 rows arrived .*; check the list"):
        download(lists, output, passes=1, min_success=0.95)
    assert server.asked["/flaky/0-m.jpg"] == 2
    assert server.asked["/ok/0-m.jpg"] == server.asked["/missing/m.jpg"] == 1

    # A lower demand takes what is there, unless it is damaged by now: that is fetched again.
    [state] = states(output)
    proof = pd.read_parquet(state / "pass-01/proof/00000.parquet")
    tar = state / "pass-01/shards/00000.tar"
    data = bytearray(tar.read_bytes())
    data[proof.offset[3] + 100] ^= 0x55
    tar.write_bytes(data)
    store = download(lists, output, **keys)
    assert store.manifest["counts"] == {"success": 9, "not_found": 1}
    for row in store.table().query("reason == ''").itertuples():
        assert store.read(row.tar, row.offset, row.size) == jpeg(number_of(row.url))
    assert server.asked["/ok/0-m.jpg"] == server.asked["/missing/m.jpg"] == 2


def test_deadline_ends_what_drips_and_keeps_what_arrived(
    server: HostileServer, tmp_path: Path
) -> None:
    paths = ["ok/1-d.jpg", "drip/1-d.jpg", "ok/2-d.jpg", "drip/2-d.jpg"]
    lists = write_list(tmp_path / "urls/a.parquet", url=[server.url(path) for path in paths])
    start = time.monotonic()
    store = download(lists, tmp_path / "images/a", deadline=16, transfer_timeout=600)
    assert time.monotonic() - start < 30
    assert store.table()["reason"].tolist() == ["", "deadline", "", "deadline"]


def test_processes_that_miss_the_deadline_are_ended_and_the_rerun_goes_on(
    server: HostileServer, tmp_path: Path
) -> None:
    paths = [f"ok/{row}-h.jpg" for row in range(4)]
    lists = write_list(tmp_path / "urls/a.parquet", url=[server.url(path) for path in paths])
    output = tmp_path / "images/a"
    # Too short for img2dataset even to start.
    with pytest.raises(UserError, match=r"0 of 4 rows arrived .*: deadline 4; rerun"):
        download(lists, output, deadline=0.3)
    keys = {"image_size": None, "deadline": 600}
    assert download(lists, output, **keys).manifest["counts"] == {"success": 4}


def test_pictures_are_resized_by_img2dataset(server: HostileServer, tmp_path: Path) -> None:
    paths = ["large/1.jpg", "png/2.png", "truncated/3.jpg", "noai/4.jpg", "bomb/5.png"]
    lists = write_list(tmp_path / "urls/a.parquet", url=[server.url(path) for path in paths])
    store = download(lists, tmp_path / "images/a", image_size=24, respect_opt_out=False)
    rows = store.table()
    assert rows["reason"].tolist() == ["", "", "damaged", "", "too_large"]
    sizes = []
    for row in rows[rows["reason"] == ""].itertuples():
        data = store.read(row.tar, row.offset, row.size)
        assert data[:2] == b"\xff\xd8"
        picture = decode(data, max_pixels=10_000)
        assert picture.size == (row.width, row.height)
        assert hashlib.sha256(data).hexdigest() == row.sha256
        sizes.append(picture.size)
    assert sizes == [(24, 36), (32, 24), (24, 24)]
    assert np.asarray(decode(store.read(0, rows.offset[1], rows["size"][1]), max_pixels=9999)).std()


def test_a_crash_of_img2dataset_shows_its_log(
    server: HostileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "broken/img2dataset").mkdir(parents=True)
    (tmp_path / "broken/img2dataset/__init__.py").write_text("raise RuntimeError('half installed')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "broken"))
    lists = write_list(tmp_path / "urls/a.parquet", url=[server.url("ok/1.jpg")])
    with pytest.raises(UserError) as error:
        download(lists, tmp_path / "images/a")
    assert "img2dataset.log: img2dataset ended with status 1" in str(error.value)
    assert "RuntimeError: half installed" in str(error.value)


def test_rows_of_one_batch_meet_their_own_picture(server: HostileServer, tmp_path: Path) -> None:
    """Shards of two processes, tars of an odd size, leftovers of older runs and other chunks."""
    urls = [server.url(f"ok/{row}-z.jpg") for row in range(520)]
    lists = write_list(
        tmp_path / "urls/a.b.parquet", url=pa.array(urls).dictionary_encode(), caption=urls
    )
    output = tmp_path / "images/a.b"
    output.mkdir(parents=True)
    for name in ("00099.tar", ".00000.99.tmp.tar", "manifest.json"):
        (output / name).write_bytes(b"old")
    other = output.parent / "state/a.c-0123456789abcdef"
    older = output.parent / "state/a.b-0123456789abcdef"
    older.mkdir(parents=True)
    other.mkdir()
    store = download(lists, output, processes=2, rows_per_tar=77)
    assert list(other.parent.iterdir()) == [other]
    assert {path.name for path in output.iterdir() if path.suffix != ".tar"} == {
        "manifest.json", "rows.parquet",
    }  # fmt: skip
    assert len(list(output.glob("*.tar"))) == 7
    table = pd.read_parquet(output / "rows.parquet")
    assert table["caption"].tolist() == urls
    assert [tar["pictures"] for tar in store.manifest["tars"]] == [77] * 6 + [58]
    for row in table.itertuples():
        assert store.read(row.tar, row.offset, row.size) == jpeg(number_of(row.url))
    assert pq.read_metadata(output / "rows.parquet").num_row_groups == 1
