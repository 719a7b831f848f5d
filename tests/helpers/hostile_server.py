"""A loopback web server that misbehaves in every way that a crawler meets; shared by tests.

Paths (N is any word, `.jpg` is a name only):

    /ok/N.jpg        a JPEG           /png/N.png, /webp/N.webp, /gif/N.gif   other formats
    /phone/N.jpg     a JPEG with a second image behind it
    /moved/N.jpg     302 to /ok       /loop/N.jpg       302 to itself
    /file/N.jpg      302 to a file:// address
    /missing/N.jpg   404              /forbidden/N.jpg  403         /busy/N.jpg  429
    /broken/N.jpg    500 for ever     /flaky/N.jpg      500 at the first request, then a JPEG
    /reset/N.jpg     connection reset /short/N.jpg      fewer bytes than its Content-Length
    /slow/N.jpg      no answer for longer than a test's time-out
    /drip/N.jpg      a byte now and then, without end
    /huge/N.jpg      1 MB and more    /empty/N.jpg      zero bytes
    /html/N.jpg      an HTML page     /truncated/N.jpg  half a JPEG
    /bomb/N.png      a header of 20,000 × 20,000 pixels
    /small/N.jpg     4 × 4 pixels     /large/N.jpg      64 × 96 pixels
    /thin/N.png      3000 × 1 pixels  /gray16/N.png     16-bit gray, 70 of 255 everywhere
    /noai/N.jpg      X-Robots-Tag: noai;  /noai-us: addressed to mlcd;  /noai-them: to another bot
    /gzip/N.jpg      a JPEG compressed though nobody asked;  /named-gzip: only called so
    /gzip-bomb/N.jpg some kB that unpack to 5 MB;  /gzip-cut: half of it
    /to/HOST:PORT/…  302 to http://HOST:PORT/…
    /pause/N.jpg     a JPEG after 0.1 s, to have time to be killed in
"""

from __future__ import annotations

import contextlib
import gzip
import io
import socket
import ssl
import struct
import threading
import time
import zlib
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from PIL import Image

from helpers.builders import jpeg


def random_image(number: int, form: str = "PNG", size: tuple[int, int] = (40, 30)) -> bytes:
    """Return a small image of one color, which `number` decides."""
    buffer = io.BytesIO()
    Image.new("RGB", size, (number % 256, number * 7 % 256, 80)).save(buffer, form)
    return buffer.getvalue()


def telephone(number: int) -> bytes:
    """Return a JPEG with a second image behind it, as telephones write them (MPO)."""
    first, second = (Image.new("RGB", (40, 30), (number % 256, 9, shade)) for shade in (10, 200))
    buffer = io.BytesIO()
    first.save(buffer, "MPO", save_all=True, append_images=[second])
    return buffer.getvalue()


def gray16() -> bytes:
    """Return a PNG of 16-bit gray, 70 of 255 everywhere."""
    buffer = io.BytesIO()
    Image.new("I;16", (40, 30), 70 * 257).save(buffer, "PNG")
    return buffer.getvalue()


def bomb() -> bytes:
    """Return a PNG of some 100 bytes whose header claims 20,000 × 20,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" * 100))
    return b"\x89PNG\r\n\x1a\n" + header + body + chunk(b"IEND", b"")


def number_of(path: str) -> int:
    """Return the number that a path's images are drawn from."""
    return zlib.crc32(path.rpartition("/")[2].partition(".")[0].encode()) % 10_000


class HostileServer:
    """Run the server in threads: `with HostileServer() as server: server.url("ok/1.jpg")`.

    With a certificate and its key (paths of PEM files) it speaks https.
    `asked` counts requests by path; `agents` is the set of User-Agent headers seen.
    """

    def __init__(
        self, certificate: Path | None = None, key: Path | None = None, host: str = "127.0.0.1"
    ) -> None:
        self.asked: Counter[str] = Counter()
        self.agents: set[str] = set()
        self.stopping = threading.Event()
        outer = self

        class Bound(_Handler):
            server_state = outer

        self._server = ThreadingHTTPServer((host, 0), Bound)
        self._server.daemon_threads = True
        self._server.block_on_close = False
        self._scheme = "http"
        if certificate is not None:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(certificate, key)
            # The handshake belongs into the handler's thread, not into the one that accepts.
            self._server.socket = context.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
            self._scheme = "https"

    def url(self, path: str) -> str:
        """Return the address of `path`."""
        return f"{self._scheme}://127.0.0.1:{self._server.server_port}/{path}"

    def __enter__(self) -> HostileServer:
        # A listen queue of 5 would drop connections of 64 threads and cost a second each.
        self._server.socket.listen(256)
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server_state: HostileServer

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        state = self.server_state
        state.asked[self.path] += 1
        state.agents.add(self.headers.get("User-Agent", ""))
        kind = self.path.split("/")[1]
        number = number_of(self.path)
        plain = {
            "ok": lambda: jpeg(number),
            "png": lambda: random_image(number, "PNG"),
            "webp": lambda: random_image(number, "WEBP"),
            "phone": lambda: telephone(number),
            "gif": lambda: random_image(number, "GIF"),
            "small": lambda: random_image(number, "JPEG", (4, 4)),
            "large": lambda: random_image(number, "JPEG", (64, 96)),
            "thin": lambda: random_image(number, "PNG", (3000, 1)),
            "gray16": gray16,
            "html": lambda: b"<!doctype html><title>Sorry</title>",
            "truncated": lambda: jpeg(number)[: len(jpeg(number)) // 2],
            "bomb": bomb,
            "empty": lambda: b"",
            "huge": lambda: bytes(1_500_000),
        }
        packed = {
            "gzip": lambda: gzip.compress(jpeg(number)),
            "named-gzip": lambda: jpeg(number),
            "gzip-bomb": lambda: gzip.compress(bytes(5_000_000)),
            "gzip-cut": lambda: gzip.compress(jpeg(number))[:200],
        }
        robots = {"noai": "noai", "noai-us": "mlcd: noai, noindex", "noai-them": "otherbot: noai"}
        status = {"missing": 404, "forbidden": 403, "busy": 429, "broken": 500}
        if kind in plain:
            self._send(plain[kind]())
        elif kind in packed:
            self._send(packed[kind](), {"Content-Encoding": "gzip"})
        elif kind == "to":
            self.send_response(302)
            self.send_header("Location", "http://" + self.path.removeprefix("/to/"))
            self.end_headers()
        elif kind in robots:
            self._send(jpeg(number), {"X-Robots-Tag": robots[kind]})
        elif kind in status:
            self.send_error(status[kind])
        elif kind == "flaky":
            if state.asked[self.path] == 1:
                self.send_error(500)
            else:
                self._send(jpeg(number))
        elif kind in ("moved", "loop", "file"):
            self.send_response(302)
            target = {"moved": "/ok/", "loop": "/loop/", "file": "file:///etc/"}[kind]
            self.send_header("Location", target + self.path.rpartition("/")[2])
            self.end_headers()
        elif kind == "short":
            self.send_response(200)
            self.send_header("Content-Length", "5000")
            self.end_headers()
            self.wfile.write(jpeg(number)[:100])
        elif kind == "reset":
            # A linger of zero seconds makes close() send RST.
            linger = struct.pack("ii", 1, 0)
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self.connection.close()
        elif kind == "slow":
            state.stopping.wait(20)
        elif kind == "drip":
            self._drip()
        elif kind == "pause":
            time.sleep(0.1)
            self._send(jpeg(number))
        else:
            self.send_error(404)

    def _send(self, data: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "image/jpeg")
        self.send_header("Content-Length", str(len(data)))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _drip(self) -> None:
        self.send_response(200)
        self.end_headers()
        with contextlib.suppress(OSError):
            while not self.server_state.stopping.wait(0.02):
                self.wfile.write(b"\xff")
                self.wfile.flush()

    def handle(self) -> None:
        # The other side gave up, or the handler closed its own connection.
        with contextlib.suppress(OSError, ValueError):
            super().handle()

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().finish()
