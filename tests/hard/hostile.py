"""A hostile server: answers that no server should give, to `mlcd download`.

The download must end in bounded time, with every row counted and a reason for each that failed, and
must keep the images that a good server sent. The answers are drawn from a seed, byte by byte.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import random
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
from cases import LIMIT, Case, Result, begin, run

from helpers.builders import jpeg
from helpers.hostile_server import HostileServer
from mlcd.stages.download.reasons import REASONS

#: Kinds of helpers.hostile_server, and how many rows of the raw ones a case has.
KNOWN = (
    "moved", "loop", "file", "missing", "forbidden", "busy", "broken", "flaky", "reset", "short",
    "slow", "drip", "huge", "empty", "html", "truncated", "bomb", "thin", "gray16", "noai", "gzip",
    "named-gzip", "gzip-bomb", "gzip-cut", "small", "phone",
)  # fmt: skip
ROWS, GOOD = 24, 6
#: Bytes of an endless answer; a client that reads on is no longer bounded.
ENDLESS = 200 << 20


def raw_answer(rng: random.Random) -> Iterator[bytes]:
    """Yield the bytes of one answer that is drawn from `rng`."""
    image = jpeg(rng.randrange(1000))
    pick: list[Callable[[], Iterator[bytes]]] = [
        lambda: _plain(b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n" + image),
        lambda: _plain(b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999\r\n\r\n" + image),
        lambda: _plain(b"HTTP/1.1 200 OK\r\nContent-Length: many\r\n\r\n" + image),
        lambda: _plain(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 5000 + b"\r\n" + image),
        lambda: _plain(b"HTTP/1.1 200 OK\r\nX: " + b"y" * 1_000_000 + b"\r\n\r\n" + image),
        lambda: _plain(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n" + image),
        lambda: _plain(b"HTTP/1.1 200 OK\r\nContent-Encoding: br\r\n\r\n" + image),
        lambda: _plain(b"HTTP/1.1 999 \xff\xfe\r\n\r\n"),
        lambda: _plain(b"HTTP/1.1 302 Found\r\nLocation: http://169.254.1.2/a.jpg\r\n\r\n"),
        lambda: _plain(b"HTTP/1.1 302 Found\r\nLocation: http://10.0.0.1:9/a.jpg\r\n\r\n"),
        lambda: _plain(b"HTTP/1.1 302 Found\r\nLocation: http://[::1\r\n\r\n"),
        lambda: _plain(b"HTTP/1.1 302 Found\r\nLocation: \r\n\r\n"),
        lambda: _plain(b"HTTP/1.1 302 Found\r\n\r\n"),
        lambda: _plain(b"HTTP/1.1 200 OK\r\nContent-Type: \0\r\n\r\n" + rng.randbytes(3000)),
        lambda: _plain(rng.randbytes(2000)),
        lambda: _plain(b""),
        lambda: _plain(b"HTTP/1.1 100 Continue\r\n\r\n" * 2000),
        lambda: _plain(b"HTTP/1.1 200 OK\r\n\r\n" + image[: rng.randrange(len(image))]),
        lambda: _plain(b"HTTP/1.1 200 OK\r\n\r\n" + _flipped(image, rng)),
        lambda: _packed(rng),
        lambda: _endless(b"HTTP/1.1 200 OK\r\n\r\n" + image),
        lambda: _endless(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),
        lambda: _drip(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 100),
        lambda: _drip(b"HTTP/1.1 200 OK\r\n\r\n" + image),
    ]
    return rng.choice(pick)()


def _plain(data: bytes) -> Iterator[bytes]:
    yield data


def _packed(rng: random.Random) -> Iterator[bytes]:
    body = gzip.compress(gzip.compress(bytes(rng.randrange(1, 80) << 20), 1), 1)
    yield b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n" + body


def _flipped(data: bytes, rng: random.Random) -> bytes:
    damaged = bytearray(data)
    for _ in range(20):
        damaged[rng.randrange(len(damaged))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def _endless(start: bytes, piece: bytes = bytes(1 << 16)) -> Iterator[bytes]:
    yield start
    block = piece * max(1, (1 << 16) // len(piece))
    for _ in range(ENDLESS // len(block)):
        yield block


def _drip(data: bytes) -> Iterator[bytes]:
    for byte in data:
        yield bytes([byte])
        time.sleep(0.5)


class _Raw(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        with contextlib.suppress(OSError):
            asked = self.request.recv(4096).split(b" ")
            seed = asked[1].decode(errors="replace") if len(asked) > 1 else ""
            rng = random.Random(seed)
            if rng.random() < 0.05:
                linger = struct.pack("ii", 1, 0)
                self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                return
            for data in raw_answer(rng):
                self.request.sendall(data)


class _RawServer(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 256


def serve(where: Path) -> int:
    """Serve until this process is ended; write the two base URLs to `where`."""
    with HostileServer() as known, _RawServer(("127.0.0.1", 0), _Raw) as raw:
        threading.Thread(target=raw.serve_forever, daemon=True).start()
        urls = [known.url(""), f"http://127.0.0.1:{raw.server_address[1]}/"]
        temporary = where.with_suffix(".tmp")
        temporary.write_text(json.dumps(urls))
        temporary.replace(where)
        threading.Event().wait()
    return 0


def cases(scratch: Path) -> Iterator[Case]:
    """Downloads from the hostile server, without end."""
    where = scratch / "hostile.json"
    where.unlink(missing_ok=True)
    begin(lambda: serve(where), scratch / "hostile.said")
    end = time.monotonic() + 30
    while not where.exists() and time.monotonic() < end:
        time.sleep(0.05)
    known, raw = json.loads(where.read_text())
    number = 0
    while True:
        yield Case(
            "server", "download", number,
            lambda f, r, number=number: _download(known, raw, f, r, number),
        )  # fmt: skip
        number += 1


def _download(known: str, raw: str, folder: Path, rng: random.Random, number: int) -> Result:
    urls = [f"{known}ok/{index}.jpg" for index in range(GOOD)]
    for index in range(ROWS):
        kind = rng.choice(KNOWN)
        half = index < ROWS // 2
        urls.append(f"{known}{kind}/{index}.jpg" if half else f"{raw}{rng.getrandbits(40)}.jpg")
    rng.shuffle(urls)
    frame = pd.DataFrame({"row": range(len(urls)), "url": urls, "caption": "", "sha256": ""})
    frame.to_parquet(folder / "list.parquet", index=False)
    size = rng.choice(["null", "64"])
    argv = ["download", "--urls", str(folder / "list.parquet"), "--output", str(folder / "chunk"),
            "--processes", "1", "--threads", "16", "--timeout", "2", "--transfer-timeout", "4",
            "--passes", "2", "--backoff", "0.1", "--min-success", "0", "--max-bytes", "20000000",
            "--image-size", size]  # fmt: skip
    result = Result("server", "download", number, "counted", counts={"rows": len(urls)})

    def work() -> int:
        from mlcd.cli import main

        os.environ["no_proxy"] = "127.0.0.1"
        return main(argv)

    ended = run(work, folder / "said", LIMIT)
    outcome = ended.outcome()
    if outcome != "done":
        result.outcome = "lost" if outcome == "noticed" else outcome
        result.told = ended.said[-3000:]
        return result
    wrong = _miscounted(folder / "chunk", urls)
    if wrong:
        result.outcome, result.told = "miscounted", wrong
    return result


def _miscounted(chunk: Path, urls: list[str]) -> str:
    """Return what is wrong with the counts of a chunk, or ''."""
    manifest = json.loads((chunk / "manifest.json").read_text())
    rows = pd.read_parquet(chunk / "rows.parquet")
    failed = rows[rows.status != "success"]
    good = rows[rows.url.str.contains("/ok/")]
    if list(rows.url) != urls or sum(manifest["counts"].values()) != len(urls):
        return f"{len(rows)} rows, counts {manifest['counts']}"
    if not set(failed.reason) <= set(REASONS) - {""}:
        return f"reasons {sorted(set(failed.reason))}"
    if not good.status.eq("success").all():
        return f"good images failed: {sorted(set(good.reason))}"
    return ""
