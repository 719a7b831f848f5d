"""Limits of a transfer, and certificates."""

from __future__ import annotations

import shutil
import subprocess
import time
import urllib.request
import zlib
from pathlib import Path
from typing import Any

import pytest

from helpers.builders import jpeg
from helpers.hostile_server import HostileServer, number_of
from mlcd.stages.download import transport
from mlcd.stages.download.reasons import classify


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


def test_bodies_that_come_packed(opener: None) -> None:
    with HostileServer() as server:
        transport.install(transport.Limits(9, 1_000_000, until=time.monotonic() + 60))
        for path in ("gzip/1.jpg", "named-gzip/1.jpg"):
            with urllib.request.urlopen(server.url(path), timeout=5) as reply:
                assert reply.read() == jpeg(number_of("/1.jpg"))
        assert fetch_error(server.url("gzip-bomb/1.jpg")) == "too_large"
        assert fetch_error(server.url("gzip-cut/1.jpg")) == "damaged"
        assert fetch_error(server.url("ok/1.jpg").replace("//", "//a:secret@")) == "credentials"
    assert transport.unpacked(zlib.compress(b"image"), 9) == b"image"
    assert transport.unpacked(b"\xff\xd8 image", 9) == b"\xff\xd8 image"
    assert transport.unpacked(b"", 9) == b""


@pytest.mark.parametrize(
    ("address", "private"),
    [
        ("127.0.0.1", True), ("10.1.2.3", True), ("192.168.0.1", True), ("169.254.169.254", True),
        ("100.64.0.1", True), ("0.0.0.0", True), ("224.0.0.1", True), ("::1", True),
        ("fe80::1%eth0", True), ("fd00::1", True), ("::ffff:127.0.0.1", True),
        ("64:ff9b::7f00:1", True), ("2002:7f00:1::", True), ("8.8.8.8", False),
        ("2606:4700::1111", False), ("::ffff:8.8.8.8", False), ("64:ff9b::808:808", False),
    ],
)  # fmt: skip
def test_addresses_of_private_networks(address: str, private: bool) -> None:
    assert transport.is_private(address) == private


@pytest.mark.parametrize(
    ("mode", "path", "reason"),
    [
        ("listed", "{private}/ok/1.jpg", ""), ("listed", "{private}/to/{private}/ok/1.jpg", ""),
        ("listed", "{private}/to/{public}/ok/1.jpg", ""), ("listed", "{public}/ok/1.jpg", ""),
        ("listed", "{public}/to/{private}/ok/1.jpg", "private_address"),
        ("listed", "{private}/to/{public}/to/{private}/ok/1.jpg", "private_address"),
        ("allow", "{public}/to/{private}/ok/1.jpg", ""), ("allow", "{private}/ok/1.jpg", ""),
        ("refuse", "{private}/ok/1.jpg", "private_address"), ("refuse", "{public}/ok/1.jpg", ""),
        ("refuse", "{public}/to/{public}/to/{private}/ok/1.jpg", "private_address"),
    ],
)  # fmt: skip
def test_who_may_send_us_to_private_addresses(
    mode: Any, path: str, reason: str, opener: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Of this machine's own addresses one stands for the internet's.
    monkeypatch.setattr(transport, "is_private", lambda address: address != "127.0.0.2")
    monkeypatch.setenv("no_proxy", "*")
    with HostileServer(host="0.0.0.0") as server:
        port = server.url("").rpartition(":")[2].rstrip("/")
        hosts = {"private": f"localhost:{port}", "public": f"127.0.0.2:{port}"}
        limits = transport.Limits(9, 1_000_000, time.monotonic() + 60, private_addresses=mode)
        transport.install(limits)
        url = "http://" + path.format(**hosts)
        if reason:
            assert fetch_error(url) == reason
            assert server.asked["/ok/1.jpg"] == 0
        else:
            with urllib.request.urlopen(url, timeout=5) as reply:
                assert reply.read() == jpeg(number_of("/1.jpg"))


def test_behind_a_proxy_addresses_written_as_numbers_are_judged(
    opener: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with HostileServer() as server:
        monkeypatch.setenv("http_proxy", server.url(""))
        monkeypatch.setenv("no_proxy", "")
        limits = transport.Limits(9, 1_000_000, time.monotonic() + 60, private_addresses="refuse")
        transport.install(limits)
        for host in ("10.0.0.1", "[::1]:80", "127.0.0.1:8080"):
            assert fetch_error(f"http://{host}/ok/1.jpg") == "private_address"
        assert server.asked.total() == 0
        # The server is no proxy; that it was asked is enough.
        assert fetch_error("http://example.org/ok/1.jpg") == "not_found"
        assert server.asked.total() == 1


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
