"""Parts of stage download: lists, reasons, limits of a transfer, process groups, proofs."""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tarfile
import time
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from builders import add_member, jpeg
from hostile_server import HostileServer, number_of

from mlcd.config import Download
from mlcd.download import child, run, shards, transport
from mlcd.download.reasons import PASSING, PERMANENT, REASONS, classify, table
from mlcd.download.source import UrlList, requestable
from mlcd.errors import UserError


def write_list(path: Path, **columns: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)
    return path


def bad_strings(values: list[bytes]) -> pa.Array:
    """Return a string array whose bytes nobody checked, as other writers produce."""
    binary = pa.array(values, pa.binary())
    return pa.Array.from_buffers(pa.string(), len(values), binary.buffers())


def refusal(urls: Path, output: Path, **options: int) -> str:
    arguments = argparse.Namespace(
        urls=str(urls), output=str(output), **{"processes": 1, "threads": 2} | options
    )
    with pytest.raises(UserError) as error:
        run(arguments, Download())
    assert "\n" not in str(error.value)
    return str(error.value)


def test_unusable_lists_are_refused_by_name(tmp_path: Path) -> None:
    empty = write_list(tmp_path / "empty.parquet", url=pa.array([], pa.string()))
    assert "empty.parquet: holds no rows" in refusal(empty, tmp_path / "out")
    wrong = write_list(tmp_path / "wrong.parquet", link=["a"], text=["b"])
    assert "no column url among its columns (link, text)" in refusal(wrong, tmp_path / "out")
    numbers = write_list(tmp_path / "numbers.parquet", url=[1, 2])
    assert "column url holds int64" in refusal(numbers, tmp_path / "out")
    garbage = tmp_path / "garbage.parquet"
    garbage.write_bytes(b"not parquet at all, but long enough to look at")
    assert "garbage.parquet: not readable as parquet" in refusal(garbage, tmp_path / "out")
    assert "no such file" in refusal(tmp_path / "none.parquet", tmp_path / "out")
    good = write_list(tmp_path / "good.parquet", url=["http://127.0.0.1:9/a.jpg"])
    assert "is a file" in refusal(good, garbage)
    assert "--threads" in refusal(good, tmp_path / "out", threads=0)
    assert not (tmp_path / "out").exists()

    torn = write_list(tmp_path / "torn.parquet", url=[f"http://h/{row}" for row in range(999)])
    data = torn.read_bytes()
    torn.write_bytes(data[:100] + b"\xff" * 200 + data[300:])
    assert "torn.parquet: damaged" in refusal(torn, tmp_path / "out")


def test_list_is_read_in_batches_and_bad_bytes_are_replaced(tmp_path: Path) -> None:
    path = write_list(
        tmp_path / "a.parquet",
        url=[f"http://h/{i}" for i in range(5)],
        caption=bad_strings([b"fine", b"caf\xe9", b"", b"\xff\xfe", "né".encode()]),
        other=[1, 2, 3, 4, 5],
    )
    source = UrlList(path)
    batches = list(source.batches(2))
    assert source.rows == 5
    assert [batch.start for batch in batches] == [0, 2, 4]
    captions = [caption for batch in batches for caption in batch.captions]
    assert captions == ["fine", "caf�", "", "��", "né"]
    assert [hash for batch in batches for hash in batch.hashes] == [""] * 5
    nulls = write_list(tmp_path / "b.parquet", url=["http://h/", None], caption=pa.nulls(2))
    assert next(UrlList(nulls).batches(9))[1:] == (["http://h/", ""], ["", ""], ["", ""])


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("http://h/a%20b.jpg?x=1&y=[2]", "http://h/a%20b.jpg?x=1&y=[2]"),
        ("  https://h/a b.jpg\n", "https://h/a%20b.jpg"),
        ("http://h/é.jpg", "http://h/%C3%A9.jpg"),
        ("http://bücher.example:8080/é", "http://xn--bcher-kva.example:8080/%C3%A9"),
        ("http://h/../../etc/passwd", "http://h/../../etc/passwd"),
        ("file:///etc/passwd", None),
        ("ftp://h/a.jpg", None),
        ("data:image/png;base64,AAAA", None),
        ("http:///a.jpg", None),
        ("http://[::1/a.jpg", None),
        ("http://h:port/a.jpg", None),
        ("", None),
        ("no url", None),
    ],
)
def test_requestable(url: str, sent: str | None) -> None:
    assert requestable(url) == sent


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("HTTP Error 404: Not Found", "not_found"),
        ("HTTP Error 410: Gone", "not_found"),
        ("HTTP Error 403: timed out 500", "refused"),
        ("HTTP Error 429: Too Many Requests", "throttled"),
        ("HTTP Error 503: redirect", "server_error"),
        ("HTTP Error 302: The HTTP server returned a redirect error that would", "redirects"),
        ("<urlopen error timed out>", "timeout"),
        ("The read operation timed out", "timeout"),
        ("<urlopen error mlcd:deadline>", "deadline"),
        ("mlcd:timeout after 60 s in all", "timeout"),
        ("HTTP Error 404: mlcd:", "not_found"),
        ("mlcd:nonsense", "other"),
        ("<urlopen error [Errno 111] Connection refused>", "connection"),
        ("[Errno 104] Connection reset by peer", "connection"),
        ("IncompleteRead(100 bytes read, 4900 more expected)", "connection"),
        ("Remote end closed connection without response", "connection"),
        ("<urlopen error [Errno -2] Name or service not known>", "dns"),
        ("<urlopen error [Errno -3] Temporary failure in name resolution>", "dns"),
        ("<urlopen error [SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed>", "tls"),
        ("Use of image disallowed by X-Robots-Tag directive", "opted_out"),
        ("image too small", "too_small"),
        ("Image decoding error", "not_an_image"),
        ("URL can't contain control characters. '/a b'", "bad_url"),
        ("", "other"),
    ],
)
def test_classify(message: str, reason: str) -> None:
    assert classify(message) == reason


def test_reasons_are_either_passing_or_permanent() -> None:
    assert not PASSING & PERMANENT
    assert set(REASONS) == PASSING | PERMANENT | {""}
    assert len(REASONS) < 256
    assert table({"timeout": 2, "not_found": 9, "dns": 2}) == "not_found 9, dns 2, timeout 2"


@pytest.fixture
def opener() -> object:
    """Restore urllib's opener after a test that installs ours."""
    yield
    urllib.request.install_opener(urllib.request.build_opener())


def fetch_error(url: str, timeout: float = 5) -> str:
    with pytest.raises(Exception) as error, urllib.request.urlopen(url, timeout=timeout) as reply:
        reply.read()
    return classify(str(error.value))


def test_transfers_end(opener: None) -> None:
    with HostileServer() as server:
        soon = time.monotonic() + 3600
        transport.install(transport.Limits(seconds=0.5, bytes=1_000_000, until=soon))
        start = time.monotonic()
        assert fetch_error(server.url("drip/1.jpg")) == "timeout"
        assert 0.4 < time.monotonic() - start < 4
        assert fetch_error(server.url("huge/1.jpg")) == "too_large"
        assert fetch_error(server.url("file/1.jpg")) == "redirects"
        assert fetch_error(server.url("loop/1.jpg")) == "redirects"
        assert fetch_error(server.url("slow/1.jpg"), timeout=0.3) == "timeout"
        assert fetch_error("file:///etc/hostname") == "bad_url"
        with urllib.request.urlopen(server.url("moved/1.jpg"), timeout=5) as reply:
            assert reply.read() == urllib.request.urlopen(server.url("ok/1.jpg")).read()
        # A body without a length is counted as it comes.
        transport.install(transport.Limits(seconds=60, bytes=150, until=soon))
        assert fetch_error(server.url("drip/1.jpg")) == "too_large"
        # The chunk's end stops a transfer in its middle, and those that have not begun.
        transport.install(transport.Limits(60, 1000, until=time.monotonic() + 0.4))
        assert fetch_error(server.url("drip/2.jpg")) == "deadline"
        asked = server.asked.total()
        assert fetch_error(server.url("ok/2.jpg")) == "deadline"
        assert server.asked.total() == asked


def test_certificates_are_checked(opener: None, tmp_path: Path, monkeypatch: Any) -> None:
    if not (openssl := shutil.which("openssl")):
        pytest.skip("no openssl program to make a certificate with")
    files = ["-keyout", str(tmp_path / "key.pem"), "-out", str(tmp_path / "cert.pem")]
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    request = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    subprocess.run([*request, *files, *name], check=True, capture_output=True)
    limits = transport.Limits(seconds=9, bytes=100_000, until=time.monotonic() + 60)
    with HostileServer(tmp_path / "cert.pem", tmp_path / "key.pem") as server:
        transport.install(limits)
        assert fetch_error(server.url("ok/1.jpg")) == "tls"
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "cert.pem"))
        transport.install(limits)
        for path in ("ok/1.jpg", "moved/1.jpg"):
            with urllib.request.urlopen(server.url(path), timeout=5) as reply:
                assert reply.read() == jpeg(number_of("/1.jpg"))
        assert fetch_error(server.url("huge/1.jpg")) == "too_large"


def supervise(tmp_path: Path, code: str, seconds: float) -> int | None:
    return child.supervise(
        [sys.executable, "-c", code],
        log=tmp_path / "log",
        until=time.monotonic() + seconds,
        environment=dict(os.environ),
    )


def test_the_whole_group_ends_at_the_deadline(tmp_path: Path) -> None:
    code = """
import subprocess, sys, time
nap = "import time; time.sleep(60)"
for _ in range(2):
    print(subprocess.Popen([sys.executable, "-c", nap]).pid, flush=True)
time.sleep(60)
"""
    start = time.monotonic()
    assert supervise(tmp_path, code, 2.5) is None
    assert time.monotonic() - start < 15
    grandchildren = [int(line) for line in child.last_lines(tmp_path / "log", 9)]
    assert len(grandchildren) == 2
    _wait_until(lambda: not any(alive(pid) for pid in grandchildren))


def test_orphans_end_with_their_leader(tmp_path: Path) -> None:
    code = """
import subprocess, sys
print(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]).pid, flush=True)
sys.exit(3)
"""
    assert supervise(tmp_path, code, 60) == 3
    orphan = int(child.last_lines(tmp_path / "log", 1)[0])
    _wait_until(lambda: not alive(orphan))


def alive(pid: int) -> bool:
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def _wait_until(condition: object, seconds: float = 10) -> None:
    until = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until
        time.sleep(0.05)


def test_lock_is_held_by_one(tmp_path: Path) -> None:
    first = child.lock(tmp_path / "lock", 1)
    assert first is not None
    assert child.lock(tmp_path / "lock", 0.2) is None
    first.close()
    assert child.lock(tmp_path / "lock", 0.2) is not None


class Shard:
    """A pass of four rows as img2dataset leaves it: rows 10, 12, 15 arrived, 11 did not."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        urls = [f"http://h/{row}" for row in range(16)]
        source = UrlList(write_list(folder / "list.parquet", url=urls))
        wanted = np.isin(np.arange(16), [10, 11, 12, 15])
        shards.plan(folder, source, wanted, processes=1)
        self.pictures = {row: jpeg(row) for row in (10, 12, 15)}
        lines = [self._line(row) for row in (12, 10, 11, 15)]
        pq.write_table(pa.Table.from_pylist(lines), folder / "shards/00000.parquet")
        self.tar = folder / "shards/00000.tar"
        self.write_tar([15, 10, 12])

    def _line(self, row: int) -> dict[str, object]:
        import hashlib

        arrived = row in self.pictures
        return {
            "row": row, "key": f"{row}", "status": "success" if arrived else "failed_to_download",
            "error_message": None if arrived else "HTTP Error 404: Not Found",
            "width": 48, "height": 48,
            "sha256": hashlib.sha256(self.pictures[row]).hexdigest() if arrived else None,
        }  # fmt: skip

    def write_tar(self, rows: list[int]) -> None:
        with tarfile.open(self.tar, "w") as tar:
            for row in rows:
                add_member(tar, f"{row}.jpg", self.pictures[row])
                add_member(tar, f"{row}.json", b"{}")

    def damage(self) -> str:
        with pytest.raises(shards.DamagedShard) as error:
            shards.prove(self.folder, 0, as_served=True)
        assert shards.unproven(self.folder) == [0]
        return str(error.value)


def test_proof_holds_reasons_and_places(tmp_path: Path) -> None:
    shard = Shard(tmp_path)
    shards.prove(tmp_path, 0, as_served=True)
    assert shards.unproven(tmp_path) == []
    [(index, proof)] = shards.proofs(tmp_path)
    assert index == 0
    assert proof["row"].to_pylist() == [10, 11, 12, 15]
    assert proof["reason"].to_pylist() == ["", "not_found", "", ""]
    for line in proof.to_pylist():
        if line["reason"] == "":
            place = (line["offset"], line["size"], line["sha256"])
            assert shards.read_picture(tmp_path, 0, *place) == shard.pictures[line["row"]]
    with pytest.raises(shards.DamagedShard):
        shards.read_picture(tmp_path, 0, line["offset"] + 1, line["size"], line["sha256"])


def test_tars_that_are_not_whole_are_found(tmp_path: Path) -> None:
    shard = Shard(tmp_path)
    whole = shard.tar.read_bytes()
    end = len(whole.rstrip(b"\0"))
    for length in (0, 100, 700, len(jpeg(15)) + 600, end - 600, end + 1):
        shard.tar.write_bytes(whole[:length])
        assert "00000.tar" in shard.damage()
    shard.tar.write_bytes(whole[:700] + b"\x55" + whole[701:])
    assert "not the bytes that arrived" in shard.damage()
    shard.write_tar([10, 12])
    assert "row 15 is counted as arrived" in shard.damage()
    shard.pictures[11] = jpeg(11)
    shard.write_tar([10, 11, 12, 15])
    assert "does not count" in shard.damage()
    shard.write_tar([10, 12, 15])
    shards.prove(tmp_path, 0, as_served=True)


def test_resizer_decodes_before_it_keeps() -> None:
    # img2dataset takes seconds to import; only this test needs it in its own process.
    from mlcd.download import fetch

    resizer = fetch.CheckedResizer(Download(min_image_size=20, max_pixels=5000))
    data = jpeg(1)
    assert resizer(io.BytesIO(data)) == (data, 48, 48, 48, 48, None)
    assert resizer(io.BytesIO(data[:400]))[-1] == "mlcd:damaged"
    assert resizer(io.BytesIO(jpeg(1, side=16)))[-1] == "mlcd:too_small"
    assert resizer(io.BytesIO(jpeg(1, side=80)))[-1] == "mlcd:too_large"


def test_options_are_the_config_keys() -> None:
    parser = argparse.ArgumentParser()
    from mlcd.download import add_arguments

    add_arguments(parser.add_argument_group())
    given = parser.parse_args(["--urls", "a.parquet", "--output", "out"])
    files = {"urls": "a.parquet", "output": "out"}
    assert vars(given) == files | {"processes": 0, "threads": 64}
    assert set(Download().fetched()) < set(Download.model_fields)
