"""What a request costs: a new connection for each, or kept ones, or urllib as img2dataset has it.

    python benchmarks/download.py --requests 200 --repeats 5

A server of HTTPS/1.1 in a process of its own, on loopback, answers each request with 20 kB. The
contenders take turns, each in one thread: plain `urllib.request.urlopen`, which img2dataset calls,
mlcd's transport with `download.keep_alive: 0`, and the same with 10. Prints the least, median and
greatest milliseconds of CPU per request of the client, and the new connections. Loopback
has no round trips: over a network each connection that is saved saves two or three of them too.
"""

from __future__ import annotations

import argparse
import json
import os
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from mlcd.stages.download import transport
from mlcd.stages.download.hosts import Hosts


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    connections = 0

    def setup(self) -> None:
        super().setup()
        Handler.connections += 1

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        body = bytes(20_000)
        if self.path == "/connections":
            body = json.dumps(Handler.connections).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def serve(folder: str) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(Path(folder, "cert.pem"), Path(folder, "key.pem"))
    server.socket = context.wrap_socket(
        server.socket, server_side=True, do_handshake_on_connect=False
    )
    print(server.server_port, flush=True)
    server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    os.environ["no_proxy"] = "*"
    with tempfile.TemporaryDirectory() as folder:
        certificate(folder)
        os.environ["SSL_CERT_FILE"] = f"{folder}/cert.pem"
        command = [sys.executable, __file__, "serve", folder]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout is not None
            try:
                measure(arguments, f"https://127.0.0.1:{server.stdout.readline().strip()}/")
            finally:
                server.terminate()


def measure(arguments: argparse.Namespace, url: str) -> None:
    contenders: dict[str, Callable[[], None]] = {
        "urllib, as img2dataset calls it": plain,
        "mlcd, keep_alive 0": lambda: ours(0),
        "mlcd, keep_alive 10": lambda: ours(10),
    }
    found: dict[str, list[tuple[float, int]]] = {name: [] for name in contenders}
    for _ in range(arguments.repeats):
        for name, install in contenders.items():
            install()
            before, start = int(get(url + "connections")), time.process_time()
            for _ in range(arguments.requests):
                get(url)
            spent = (time.process_time() - start) / arguments.requests * 1e3
            plain()
            found[name].append((spent, int(get(url + "connections")) - before))
    print(
        f"| {arguments.requests} requests | CPU ms: least | median | greatest | new connections |"
    )
    print("|---|---:|---:|---:|---:|")
    for name, rounds in found.items():
        spent = sorted(each for each, _ in rounds)
        # Without that of the last question.
        connections = statistics.median(count - 1 for _, count in rounds)
        print(
            f"| {name} | {spent[0]:.2f} | {statistics.median(spent):.2f} | {spent[-1]:.2f} "
            f"| {connections:.0f} |"
        )


def plain() -> None:
    urllib.request.install_opener(urllib.request.build_opener())
    # What urlopen makes when nothing is installed: a TLS context for each request.
    urllib.request._opener = None  # type: ignore[attr-defined]


def ours(keep_alive: float) -> None:
    until = time.monotonic() + 600
    hosts = Hosts(8, 30, 300, until)
    transport.install(transport.Limits(60, 10**6, until, keep_alive=keep_alive), hosts)


def get(url: str) -> bytes:
    request = urllib.request.Request(url, headers={"User-Agent": "mlcd"})
    with urllib.request.urlopen(request, timeout=10) as answer:
        body: bytes = answer.read()
    return body


def certificate(folder: str) -> None:
    files = ["-keyout", f"{folder}/key.pem", "-out", f"{folder}/cert.pem"]
    name = ["-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"]
    request = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    subprocess.run([*request, *files, *name], check=True, capture_output=True)


if __name__ == "__main__":
    serve(sys.argv[2]) if sys.argv[1:2] == ["serve"] else main()
