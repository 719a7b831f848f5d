"""Serve the demo's images on this machine only, straight out of their tar.

    python demo/server.py --port 18765 --tar demo/openclipart.tar

Standard library only. The tar is indexed once; a URL is looked up in that index and never becomes
a path on disk. GET /openclipart/KEY.jpg gives the member KEY.jpg; GET / gives the identity of the
pack, by which demo/run.py recognizes a server that is already there.
"""

from __future__ import annotations

import argparse
import errno
import hashlib
import json
import os
import signal
import socketserver
import sys
import tarfile
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path

PORT = 18765
PREFIX = "/openclipart/"
TYPES = {"jpg": "image/jpeg", "png": "image/png", "webp": "image/webp", "json": "application/json"}


class Pack:
    """Members of a tar by name: offset and size of their bytes. Safe to read from many threads."""

    def __init__(self, path: Path) -> None:
        self._handle = path.open("rb")
        self.places: dict[str, tuple[int, int]] = {}
        with tarfile.open(fileobj=self._handle, mode="r:") as tar:
            for member in tar:
                if member.isfile():
                    self.places[member.name] = (member.offset_data, member.size)
        text = json.dumps(sorted(self.places.items()))
        self.identity = hashlib.sha256(text.encode()).hexdigest()

    def read(self, name: str) -> bytes | None:
        """Return a member's bytes, or None if there is no such member."""
        if name not in self.places:
            return None
        offset, size = self.places[name]
        return os.pread(self._handle.fileno(), size, offset)

    def close(self) -> None:
        """Close the tar."""
        self._handle.close()


class Server(socketserver.ThreadingTCPServer):
    """A thread a connection, bound to the loopback address alone."""

    # Leave to bind again at once after a stop; a port that another server holds still fails.
    allow_reuse_address = True
    daemon_threads = True
    # img2dataset opens many connections at once; the default queue of 5 would refuse some.
    request_queue_size = 256

    def __init__(self, port: int, pack: Pack) -> None:
        self.pack = pack
        super().__init__(("127.0.0.1", port), Handler)

    def handle_error(self, request: object, client_address: object) -> None:
        """Pass over clients that hang up in the middle; show anything else."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class Handler(BaseHTTPRequestHandler):
    """Answer GET and HEAD."""

    protocol_version = "HTTP/1.1"
    server: Server
    # Ends a connection that its client has forgotten, and with it a thread.
    timeout = 60
    # Header and body in one segment: otherwise Nagle's algorithm waits 40 ms on kept connections.
    wbufsize = -1
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        """Send a member, or the pack's identity for `/`."""
        name = self.path.partition("?")[0]
        if name == "/":
            description = {"pack": self.server.pack.identity}
            self._answer(HTTPStatus.OK, TYPES["json"], json.dumps(description).encode())
            return
        data = None
        if name.startswith(PREFIX):
            data = self.server.pack.read(name.removeprefix(PREFIX))
        if data is None:
            self._answer(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", b"no such image\n")
        else:
            kind = TYPES.get(name.rpartition(".")[2], "application/octet-stream")
            self._answer(HTTPStatus.OK, kind, data)

    do_HEAD = do_GET

    def _answer(self, status: HTTPStatus, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, format: str, *values: object) -> None:
        """Say nothing: a line per image would bury the workflow's own output."""


def main() -> int:
    """Serve until SIGINT or SIGTERM. Returns 0, or 1 if the tar or the port cannot be had."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--port", type=int, default=PORT, help="0: any free one")
    parser.add_argument("--tar", type=Path, default=Path(__file__).parent / "openclipart.tar")
    parser.add_argument(
        "--ready-file", type=Path, help="written, with the URL in it, when the server listens"
    )
    arguments = parser.parse_args()
    try:
        pack = Pack(arguments.tar)
    except (OSError, tarfile.TarError) as error:
        print(f"server: {arguments.tar}: not readable as a tar ({error})", file=sys.stderr)
        return 1
    try:
        server = Server(arguments.port, pack)
    except OSError as error:
        reason = "in use by another program" if error.errno == errno.EADDRINUSE else error.strerror
        print(
            f"server: port {arguments.port} is {reason}; stop that program, or choose another "
            "--port",
            file=sys.stderr,
        )
        return 1
    with server:
        # shutdown() waits for serve_forever() to end, so it cannot run in the same thread.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: threading.Thread(target=server.shutdown).start())
        url = f"http://127.0.0.1:{server.server_address[1]}/"
        print(f"serving {len(pack.places) // 2} images on {url}", flush=True)
        if arguments.ready_file:
            temporary = arguments.ready_file.with_name(arguments.ready_file.name + ".tmp")
            temporary.write_text(url)
            temporary.replace(arguments.ready_file)
        server.serve_forever(poll_interval=0.1)
    pack.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
