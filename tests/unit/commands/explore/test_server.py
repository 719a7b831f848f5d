"""The server of `mlcd explore`: who may ask, what is answered, and what never is."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys

import pytest

from helpers.explore_runs import HOSTILE, NO_ENCODER, ExploreRun, ask, served
from helpers.paths import ROOT
from mlcd.commands.explore import server as module
from mlcd.data.image_store import fingerprint
from mlcd.utils.errors import UserError
from mlcd.utils.records import write_record


def test_it_listens_on_the_loopback_interface_alone(server):
    assert server.server_address[0] == "127.0.0.1"
    assert server.url == f"http://127.0.0.1:{server.port}/{server.token}/"
    assert f"ssh -L {server.port}:127.0.0.1:{server.port}" in module.addresses(server)


@pytest.mark.parametrize("path", ["", "app.js", "style.css", "api/about", "map/0/0/0?by=size",
                                  "image/0/0/64", "nothing", "api/cluster/999"])  # fmt: skip
def test_every_answer_forbids_requests_to_elsewhere(server, path):
    answer, body = ask(server, path)
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'self';")
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Referrer-Policy"] == "no-referrer"
    assert int(answer.headers["Content-Length"]) == len(body)
    head, nothing = ask(server, path, method="HEAD")
    assert (head.status, nothing) == (answer.status, b"")


@pytest.mark.parametrize(
    "host",
    [
        "evil.example", "evil.example:80", "127.0.0.1.evil.example", "[::1]:80", "user@127.0.0.1",
        "[", "127.0.0.1:x", "",
    ],
)  # fmt: skip
def test_another_name_for_this_host_is_refused(server, host):
    assert ask(server, "api/about", Host=host)[0].status == 421


def test_a_tunnel_with_another_port_is_served(server):
    for host in ("localhost:1234", "127.0.0.1:99"):
        assert ask(server, "api/about", Host=host)[0].status == 200


def test_an_address_without_the_token_is_refused(server):
    for token in ("", "x", server.token[:-1], server.token + "x", "%00", "ü".encode().hex()):
        answer, body = ask(server, "api/about", token=token)
        assert answer.status == 403 and server.token not in body.decode()


def test_other_pages_may_not_ask(server):
    assert ask(server, "api/about", Origin="http://evil.example")[0].status == 403
    assert ask(server, "api/about", Sec_Fetch_Site="cross-site")[0].status == 403
    mine = f"http://127.0.0.1:{server.port}"
    assert ask(server, "api/about", Origin=mine, Sec_Fetch_Site="same-origin")[0].status == 200


@pytest.mark.parametrize(
    "path",
    [
        "../../../../../../etc/passwd", "..%2f..%2fetc%2fpasswd", "/etc/passwd", "static/app.js",
        "image/0/0/../../../../etc/passwd", "image/0/000000000.jpg/64", "image/-1/0/64",
        "image/0/20/64", "image/3/0/64", "image/0/0/65", "image/0/0/99999", "image/9/9/9/9",
        "image/99999999999999999999/0/64", "cover/7/64", "cover/6/64", "map/0/1/0", "map/17/0/0",
        "map/0/0/0?by=../x", "api/clusters?by=__class__", "api/clusters?start=-1",
        "api/clusters?count=x", "api/clusters?count=%D9%A3", "api/cluster/7",
        "api/image/0/20", "__init__.py", "index.html%00",
    ],
)  # fmt: skip
def test_nothing_else_is_ever_read(server, path):
    answer, body = ask(server, path)
    assert answer.status in (404, 400) and b"root:" not in body
    assert len(body) < 300


def test_pages_are_bounded(server, explored):
    found = json.loads(ask(server, "api/clusters?count=999999")[1])
    assert len(found["clusters"]) <= 200
    beyond = json.loads(ask(server, "api/cluster/0?start=999999999")[1])
    assert beyond["images"] == []


def test_hostile_captions_come_as_json(server):
    answer, body = ask(server, "api/image/0/0")
    assert answer.headers["Content-Type"] == "application/json"
    assert json.loads(body)["caption"] == HOSTILE


def test_what_is_no_request_is_answered_like_all_else(server):
    answer, body = ask(server, "api/about", method="PUT", body=b"x")
    assert answer.status == 501 and json.loads(body)["problem"]
    assert answer.headers["Content-Security-Policy"].startswith("default-src 'self';")
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(b"<script>alert(1)</script> \x00\xff\r\n\r\n")
        said = connection.recv(2000)
    assert b'{"problem":' in said and b"text/html" not in said


def test_an_address_that_is_none_is_refused_without_a_traceback(server, caplog):
    for address in (b"http://[/x", b"//[::1", b"http://localhost/x?=[", b"*"):
        assert said_by(server, b"GET %s HTTP/1.1\r\nHost: localhost\r\n" % address)[9:12] == b"403"
    assert not caplog.records


def test_the_body_of_a_request_is_never_the_next_request(server):
    inner = f"GET /{server.token}/api/about HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
    for method, token in (("POST", "x"), ("GET", server.token)):
        head = f"{method} /{token}/api/about HTTP/1.1\r\nHost: localhost\r\n"
        head += f"Content-Length: {len(inner)}\r\n"
        assert said_by(server, head.encode(), inner).count(b"HTTP/1.1 ") == 1
    head = f"POST /{server.token}/api/by-image HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5\r\n"
    said = said_by(server, f"{head}Transfer-Encoding: chunked\r\n".encode(), b"0\r\n\r\n" + inner)
    assert said.startswith(b"HTTP/1.1 411") and said.count(b"HTTP/1.1 ") == 1


def said_by(server, head: bytes, body: bytes = b"") -> bytes:
    """Return all that is answered to bytes as they stand, until the server closes."""
    said = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(head + b"\r\n" + body)
        connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            while part := connection.recv(65536):
                said += part
    return said


def test_images_are_small_copies(server):
    answer, body = ask(server, "image/0/3/64")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "image/webp")
    assert body[8:12] == b"WEBP"
    assert ask(server, "cover/0/64")[0].status == 200


def test_an_upload_has_a_length_and_a_limit(server):
    too_much = str(module.UPLOAD + 1)
    assert ask(server, "api/by-image", method="POST", Content_Length=too_much)[0].status == 413
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as connection:
        connection.sendall(
            f"POST /{server.token}/api/by-image HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 411")
    assert ask(server, "elsewhere", method="POST", body=b"x")[0].status == 404
    assert ask(server, "api/by-image", method="POST", body=b"no image")[0].status == 422


def test_without_an_encoder_an_image_is_refused_in_words(server, explored):
    answer, body = ask(server, "api/by-image", method="POST", body=explored.images[0])
    assert answer.status == 409 and "which encoder" in json.loads(body)["problem"]


def test_changed_images_and_manifests_that_point_elsewhere_are_not_shown(tmp_path):
    run = ExploreRun(tmp_path / "results", identity=NO_ENCODER)
    folder = run.results / "images" / "a-00000"
    with served(run.results, tmp_path / "index"):
        pass
    tars = sorted(folder.glob("*.tar"))
    for tar in tars:
        tar.write_bytes(bytes(tar.stat().st_size))
    with served(run.results, tmp_path / "index") as server:
        answer, body = ask(server, "image/0/1/64")
        assert answer.status == 410 and json.loads(body) == {"problem": "gone or changed"}
    secret = tmp_path / "secret.tar"
    shutil.copy(tars[0], secret)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest.pop("checksum")
    manifest["tars"][0]["name"] = "../../../secret.tar"
    manifest["fingerprint"] = fingerprint(manifest)
    write_record(folder / "manifest.json", manifest)
    with served(run.results, tmp_path / "index") as server:
        assert ask(server, "image/0/1/64")[0].status == 410


def test_the_page_never_makes_markup_of_data_and_names_no_other_host():
    for name, data in module.static_files().items():
        text = data.decode()
        for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(",
                     "new Function", "srcdoc", "javascript:"):  # fmt: skip
            assert word not in text, f"{name}: {word}"
        hosts = set(re.findall(r"https?://([^/\"' ]+)", text))
        assert hosts <= {"www.w3.org"}, name  # the name of SVG, which is never asked for
        if name.endswith(".html"):
            assert " style=" not in text and "<style" not in text and " on" not in re.sub(
                r">[^<]*<", "><", text)  # fmt: skip


def test_control_c_ends_it_without_a_word_and_the_run_is_as_it_was(explored, tmp_path):
    def state() -> list[tuple[str, int]]:
        files = explored.results.rglob("*")
        return sorted((str(path), path.stat().st_mtime_ns) for path in files)

    before = state()
    process = subprocess.Popen(
        [sys.executable, "-m", "mlcd", "explore", explored.results, "--index", tmp_path],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )  # fmt: skip
    assert process.stdout is not None
    out = "".join(process.stdout.readline() for _ in range(4))
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert out.startswith("open     http://127.0.0.1:") and "ssh -L" in out
    assert process.returncode == 0 and "Traceback" not in said and "ERROR" not in said
    assert state() == before


def test_a_port_that_is_taken_is_told(server, capsys):
    with pytest.raises(UserError, match="--port"):
        module.Server(server.answers, server.thumbnails, server.port)
