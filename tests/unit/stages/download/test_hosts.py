"""Limits per host, Retry-After, remembered names and kept connections, against a real server."""

from __future__ import annotations

import email.utils
import socket
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest

from mlcd.stages.download import transport
from mlcd.stages.download.hosts import Hosts, seconds_of
from mlcd.stages.download.reasons import classify


class Counting:
    """A server of HTTP/1.1 that counts requests at a time and connections.

    /pause answers after 50 ms; /busy with 429 and `Retry-After: {retry_after}` until `busy` such
    answers are given; /missing with 404; /cut closes its connection after the answer unsaid.
    """

    def __init__(self, retry_after: str = "0", busy: int = 1) -> None:
        self.now = self.most = self.connections = 0
        self.asked: list[tuple[str, float]] = []
        self.lock = threading.Lock()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def setup(self) -> None:
                super().setup()
                with outer.lock:
                    outer.connections += 1

            def do_GET(self) -> None:
                with outer.lock:
                    outer.now += 1
                    outer.most = max(outer.most, outer.now)
                    outer.asked.append((self.path, time.monotonic()))
                    count = Counter(path for path, _ in outer.asked)[self.path]
                if self.path.startswith("/pause"):
                    time.sleep(0.05)
                status = 404 if self.path == "/missing" else 200
                if self.path == "/busy" and count <= busy:
                    status = 429
                with outer.lock:
                    outer.now -= 1
                self.send_response(status)
                self.send_header("Content-Length", "5")
                if status == 429:
                    self.send_header("Retry-After", retry_after)
                self.end_headers()
                self.wfile.write(b"image")
                self.close_connection = self.path == "/cut"

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port

    def __enter__(self) -> Counting:
        self._server.socket.listen(64)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def get(self, path: str) -> bytes:
        url = f"http://127.0.0.1:{self.port}{path}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            body: bytes = answer.read()
        return body


@pytest.fixture(autouse=True)
def opener(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("no_proxy", "*")
    yield
    urllib.request.install_opener(urllib.request.build_opener())


def install(
    most: int = 0, patience: float = 0, keep_alive: float = 0, kept: Path | None = None,
    seconds: float = 60,
) -> Hosts:  # fmt: skip
    until = time.monotonic() + seconds
    hosts = Hosts(most, patience, 60, until, kept)
    transport.install(transport.Limits(9, 1000, until, keep_alive=keep_alive), hosts)
    return hosts


def ask_many(server: Counting) -> None:
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(server.get, [f"/pause/{i}" for i in range(8)])) == [b"image"] * 8


@pytest.mark.parametrize("keep_alive", [0, 9])
def test_a_host_has_so_many_requests_at_a_time_over_all_processes(keep_alive: float) -> None:
    with Counting() as server:
        ask_many(server)
        assert server.most > 3
        server.most = 0
        install(most=3, keep_alive=keep_alive)
        children = [get_context("fork").Process(target=ask_many, args=(server,)) for _ in range(2)]
        for child in children:
            child.start()
        for child in children:
            child.join()
        assert [child.exitcode for child in children] == [0, 0]
        assert server.most == 3 and len(server.asked) == 24


def test_errors_and_redirects_leave_their_place() -> None:
    with Counting() as server:
        install(most=1, keep_alive=9)
        for _ in range(3):
            with pytest.raises(urllib.error.HTTPError, match="404"):
                server.get("/missing")
        answer = urllib.request.urlopen(f"http://127.0.0.1:{server.port}/ok", timeout=9)
        answer.close()  # not read
        assert server.get("/ok") == b"image"


def test_a_pause_is_kept_and_the_request_made_again() -> None:
    with Counting(retry_after="1", busy=2) as server:
        install(patience=5)
        assert server.get("/busy") == b"image"
        times = [when for _, when in server.asked]
        assert len(times) == 3
        assert times[1] - times[0] >= 0.99 and times[2] - times[1] >= 0.99


def test_a_longer_pause_is_no_request_at_all_until_it_is_over(tmp_path: Path) -> None:
    with Counting(retry_after="1000") as server:
        hosts = install(patience=5, kept=tmp_path / "hosts.json")
        with pytest.raises(urllib.error.HTTPError) as error:
            server.get("/busy")
        assert classify(str(error.value)) == "throttled"
        for _ in range(2):
            with pytest.raises(ValueError, match="asked for 1000 s without") as refused:
                server.get("/ok")
            assert classify(str(refused.value)) == "throttled"
            # The next pass is another process.
            hosts.keep()
            install(patience=5, kept=tmp_path / "hosts.json")
        assert len(server.asked) == 1


def test_a_server_that_asks_for_no_pause_for_ever_ends() -> None:
    with Counting(retry_after="0", busy=99) as server:
        install(patience=3)
        with pytest.raises(urllib.error.HTTPError, match="429"):
            server.get("/busy")
        assert len(server.asked) == 4


def test_waiting_ends_with_the_chunk() -> None:
    with Counting(retry_after="9") as server:
        install(patience=30, seconds=1)
        with pytest.raises(ValueError, match="deadline"):
            server.get("/busy")


def test_a_connection_serves_the_requests_that_follow() -> None:
    with Counting() as server:
        for keep_alive, connections in ((9, 1), (0, 5)):
            server.connections = 0
            install(keep_alive=keep_alive)
            paths = ["/ok", "/missing", "/ok", "/missing", "/ok"]
            for path in paths:
                if path == "/ok":
                    assert server.get(path) == b"image"
                else:
                    with pytest.raises(urllib.error.HTTPError):
                        server.get(path)
            assert server.connections == connections
        # One that the server has closed is noticed, and another is made.
        install(keep_alive=9)
        server.connections = 0
        assert [server.get(path) for path in ("/cut", "/ok", "/ok")] == [b"image"] * 3
        assert server.connections == 2


def test_a_kept_connection_may_not_lead_to_a_private_address() -> None:
    until = time.monotonic() + 60
    with Counting() as server:
        transport.install(transport.Limits(9, 1000, until, keep_alive=9))
        assert server.get("/ok") == b"image"
        request = urllib.request.Request(f"http://127.0.0.1:{server.port}/ok")
        # As one that a public host redirects here.
        request.from_public = True  # type: ignore[attr-defined]
        transport.install(transport.Limits(9, 1000, until, "listed", keep_alive=9))
        assert server.get("/ok") == b"image"
        with pytest.raises(ValueError, match="private_address"):
            urllib.request.urlopen(request, timeout=9)


@pytest.mark.parametrize(("seconds", "expected"), [(60, 1), (0, 3)])
def test_names_are_looked_up_once(
    seconds: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = Counter[str]()
    real = socket.getaddrinfo

    def counted(host: str, *rest: Any, **options: Any) -> Any:
        asked[host] += 1
        return real(host, *rest, **options)

    monkeypatch.setattr(socket, "getaddrinfo", counted)
    hosts = Hosts(0, 0, seconds, time.monotonic() + 60)
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda _: hosts.addresses("localhost", 80), range(3)))
    assert found[0] == found[1] == found[2] and "127.0.0.1" in found[0]
    for _ in range(3):
        with pytest.raises(OSError):
            hosts.addresses("no-such-name.invalid", 80)
    assert asked == {"localhost": expected, "no-such-name.invalid": expected}


def test_what_a_server_writes_as_retry_after() -> None:
    assert seconds_of("120") == 120 and seconds_of(" 0 ") == 0
    date = email.utils.formatdate(time.time() + 60, usegmt=True)
    assert 55 < (seconds_of(date) or 0) <= 60
    assert seconds_of("Sun, 06 Nov 1994 08:49:37 GMT") == 0
    for text in (None, "", "soon", "-5", "1e9", "²"):
        assert seconds_of(text) is None
    assert seconds_of("9" * 400) == 999_999_999
