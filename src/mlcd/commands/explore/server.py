"""The local server: one page, its data, and images of the run, for whoever has the address.

It listens on the loopback interface alone. Every address begins with a word by chance, which other
users of the machine do not know; a page of another site can neither guess it nor, by a name of its
own that leads here, pass for this host (DNS rebinding). Nothing in an address is ever a path: files
of the page are the packaged ones, images are two numbers.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import re
import secrets
import socket
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib import resources
from typing import Any, ClassVar
from urllib.parse import parse_qs

from mlcd.commands.explore.answers import Answers, Missing
from mlcd.commands.explore.images import SIDES, Thumbnails, why_not
from mlcd.data.decode import BadImage
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER

HOST = "127.0.0.1"
#: Bytes of an image that is dropped on the page, and characters of a query.
UPLOAD, QUERY = 32 << 20, 500
#: A number in an address.
_DIGITS = "[0-9]{1,12}"
#: Seconds that a connection may be silent.
_SILENCE = 60
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'; object-src 'none'",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}


class Server(ThreadingHTTPServer):
    """Serves one run. Raises :class:`UserError` if the port is taken.

    Attributes: `token`, `url`, and `port`, which is chosen where 0 was asked for.
    """

    daemon_threads = True
    # A second server on the same port would take requests of the first.
    allow_reuse_port = False

    def __init__(self, answers: Answers, thumbnails: Thumbnails, port: int) -> None:
        self.answers, self.thumbnails = answers, thumbnails
        self.files = static_files()
        self.token = secrets.token_urlsafe(16)
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            raise UserError(
                f"--port: {port} cannot be listened on ({error.strerror}); give another, or 0 for "
                "any that is free"
            ) from None
        self.port = int(self.server_address[1])
        self.url = f"http://{HOST}:{self.port}/{self.token}/"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log a defect; a browser that has closed the connection is none."""
        import sys

        if not isinstance(sys.exc_info()[1], OSError):
            LOGGER.exception("a request failed")


def static_files() -> dict[str, bytes]:
    """Return the files of the page by name."""
    folder = resources.files("mlcd.commands.explore") / "static"
    return {entry.name: entry.read_bytes() for entry in folder.iterdir() if entry.is_file()}


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "mlcd", ""
    timeout = _SILENCE
    # An answer is sent as one: its head alone would wait for a word that it arrived.
    wbufsize, disable_nagle_algorithm = -1, True

    def do_GET(self) -> None:
        """Answer with a file of the page, data or an image."""
        self._answer(self._get)

    def do_HEAD(self) -> None:
        """Answer as GET does, without the body."""
        self._answer(self._get)

    def do_POST(self) -> None:
        """Answer a search by an image, whose bytes are the body."""
        self._answer(self._post)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: an address holds the token."""

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Answer what is no request, or one of another method, as all else is answered."""
        self.close_connection = True
        self._say(code, message or "no such request")

    def _answer(self, work: Callable[[str, dict[str, str]], None]) -> None:
        # What is not read of a body would be taken for the next request.
        self.close_connection |= any(
            name in self.headers for name in ("Content-Length", "Transfer-Encoding")
        )
        try:
            if (found := self._allowed()) is not None:
                work(*found)
        except Missing as error:
            self._say(404, str(error))
        except BadImage as error:
            self._say(422, f"the image cannot be used: {error}")
        except UserError as error:
            self._say(409, str(error))
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True
        except Exception:
            LOGGER.exception("a request failed")
            with contextlib.suppress(OSError):
                self._say(500, "a defect of mlcd; its terminal has the traceback")

    def _allowed(self) -> tuple[str, dict[str, str]] | None:
        """Return the path below the token and the query; None for what was refused."""
        host = self.headers.get("Host", "")
        # Another port is that of a tunnel.
        if not re.fullmatch(rf"({re.escape(HOST)}|localhost)(:[0-9]{{1,5}})?", host):
            self._say(421, "ask for 127.0.0.1 or localhost")
            return None
        if self.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            self._say(403, "asked for by another page")
            return None
        origin = self.headers.get("Origin")
        if origin is not None and origin != f"http://{host}":
            self._say(403, "asked for by another page")
            return None
        path, _, asked = self.path.partition("?")
        token, _, rest = path.removeprefix("/").partition("/")
        if not hmac.compare_digest(token.encode(), self.server.token.encode()):
            self._say(403, "the address lacks its token; take the one that mlcd explore printed")
            return None
        query = {key: values[-1] for key, values in parse_qs(asked).items()}
        return rest, query

    def _get(self, path: str, query: dict[str, str]) -> None:
        name = path or "index.html"
        if name in self.server.files:
            kind = _TYPES.get(f".{name.rpartition('.')[2]}", "application/octet-stream")
            self._send(200, kind, self.server.files[name])
            return
        for pattern, work in self._ROUTES:
            if found := pattern.fullmatch(path):
                work(self, query, *map(int, found.groups()))
                return
        raise Missing("no such page")

    def _post(self, path: str, query: dict[str, str]) -> None:
        if path != "api/by-image":
            raise Missing("no such page")
        length = self.headers.get("Content-Length", "")
        if not re.fullmatch(_DIGITS, length) or "Transfer-Encoding" in self.headers:
            self._say(411, "the length of the image is missing")
            return
        if int(length) > UPLOAD:
            self._say(413, f"the image has more than {UPLOAD >> 20} MiB")
            return
        self._json(self.server.answers.by_image(self.rfile.read(int(length))))

    def _about(self, query: dict[str, str]) -> None:
        self._json({**self.server.answers.about(), "upload": UPLOAD})

    def _clusters(self, query: dict[str, str]) -> None:
        start, count = _number(query, "start", 0), _number(query, "count", 48)
        rising = query.get("order") == "up"
        self._json(
            self.server.answers.clusters(
                query.get("by", "size"), rising=rising, start=start, count=count
            )
        )

    def _cluster(self, query: dict[str, str], cluster: int) -> None:
        start, count = _number(query, "start", 0), _number(query, "count", 60)
        words = query.get("words", "")[:QUERY]
        self._json(self.server.answers.cluster(cluster, start, count, words))

    def _image(self, query: dict[str, str], chunk: int, row: int) -> None:
        self._json(self.server.answers.image(chunk, row))

    def _words(self, query: dict[str, str]) -> None:
        self._json(self.server.answers.by_words(query.get("q", "")[:QUERY]))

    def _cover(self, query: dict[str, str], cluster: int, side: int) -> None:
        self._thumbnail(query, *self.server.answers.cover(cluster), side)

    def _thumbnail(self, query: dict[str, str], chunk: int, row: int, side: int) -> None:
        self.server.answers.check_image(chunk, row)
        if side not in SIDES:
            raise Missing(f"no size {side}: {', '.join(map(str, SIDES))}")
        try:
            data = self.server.thumbnails.get(chunk, row, side)
        except (BadImage, UserError) as error:
            self._say(410, why_not(error))
            return
        self._send(200, "image/webp", data, kept=True)

    def _tile(self, query: dict[str, str], z: int, x: int, y: int) -> None:
        data = self.server.answers.tile(z, x, y, query.get("by", "size"))
        self._send(200, "application/octet-stream", data, kept=True)

    def _json(self, value: Any) -> None:
        text = json.dumps(value, allow_nan=False, separators=(",", ":"))
        self._send(200, "application/json", text.encode("utf-8", "replace"))

    def _say(self, status: int, message: str) -> None:
        body = json.dumps({"problem": message}).encode("utf-8", "replace")
        self._send(status, "application/json", body)

    def _send(self, status: int, kind: str, body: bytes, *, kept: bool = False) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "private, max-age=3600" if kept else "no-store")
        for name, value in _HEADERS.items():
            self.send_header(name, value)
        if self.close_connection:
            self.send_header("Connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    #: Addresses below the token; each number in them is an argument.
    _ROUTES: ClassVar[list[tuple[re.Pattern[str], Callable[..., None]]]] = [
        (re.compile(pattern.replace("N", f"({_DIGITS})")), work)
        for pattern, work in (
            ("api/about", _about),
            ("api/clusters", _clusters),
            ("api/cluster/N", _cluster),
            ("api/image/N/N", _image),
            ("api/words", _words),
            ("cover/N/N", _cover),
            ("image/N/N/N", _thumbnail),
            ("map/N/N/N", _tile),
        )
    ]


def _number(query: dict[str, str], name: str, default: int) -> int:
    text = query.get(name, str(default))
    if not re.fullmatch(_DIGITS, text):
        raise Missing(f"{name} is no number")
    return int(text)


def serve(server: Server) -> None:
    """Print where, and serve until Ctrl-C."""
    with contextlib.suppress(KeyboardInterrupt):
        print(addresses(server), flush=True)
        server.serve_forever(poll_interval=0.2)
    server.server_close()


def addresses(server: Server) -> str:
    """Return what to open, and how from another machine."""
    return (
        f"open     {server.url}\n"
        f"from another machine, first:\n"
        f"         ssh -L {server.port}:{HOST}:{server.port} {socket.gethostname()}\n"
        "end      Ctrl-C"
    )
