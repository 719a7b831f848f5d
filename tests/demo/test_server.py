"""The demo's server gives the pack's bytes and nothing else; run.py ends what it starts."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest

from helpers.builders import add_member, jpeg
from helpers.paths import ROOT
from mlcd.data.members import labeled_members

DEMO = ROOT / "demo"
sys.path.insert(0, str(DEMO))

import run as demo_run  # noqa: E402
import server as demo_server  # noqa: E402


def small_tar(path: Path, n: int = 3) -> dict[str, bytes]:
    """Write a tar of n images; return its members."""
    members = {}
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for i in range(n):
            members[f"p{i}.jpg"] = jpeg(i)
            members[f"p{i}.json"] = b'{"split":"train"}'
        for name, data in members.items():
            add_member(tar, name, data)
    return members


def free_port() -> int:
    """Return a port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# The server
@pytest.fixture
def served(tmp_path):
    """A server of a small tar in this process: its port and members."""
    members = small_tar(tmp_path / "small.tar")
    with demo_server.Server(0, demo_server.Pack(tmp_path / "small.tar")) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.02,))
        thread.start()
        yield server.server_address[1], members
        server.shutdown()
        thread.join()


def test_server_gives_the_members_bytes_on_one_connection(served):
    port, members = served
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    for name, data in members.items():
        connection.request("GET", f"/openclipart/{name}")
        answer = connection.getresponse()
        kind = "image/jpeg" if name.endswith("jpg") else "application/json"
        assert (answer.status, answer.version) == (200, 11)
        assert answer.getheader("Content-Type") == kind
        assert answer.read() == data
        assert not answer.will_close
    connection.request("HEAD", "/openclipart/p0.jpg")
    answer = connection.getresponse()
    assert answer.getheader("Content-Length") == str(len(members["p0.jpg"]))
    assert answer.read() == b""
    connection.close()


@pytest.mark.parametrize(
    "path",
    [
        "/openclipart/gone.jpg", "/openclipart/", "/p0.jpg", "/openclipart/../server.py",
        "/openclipart//etc/passwd", "/openclipart/%2e%2e/server.py", "/../../etc/passwd",
        "/openclipart/p0.jpg%00", "http://other.example/openclipart/p0.jpg",
    ],
)  # fmt: skip
def test_server_knows_nothing_but_its_members(served, path):
    connection = http.client.HTTPConnection("127.0.0.1", served[0], timeout=10)
    connection.request("GET", path)
    answer = connection.getresponse()
    assert answer.status == 404
    assert answer.read() == b"no such image\n"
    connection.close()


def test_server_answers_many_at_once_and_survives_rude_clients(served):
    port, members = served
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", port)) as rude:
            rude.sendall(b"GET /openclipart/p0.jpg HT")
    failures: list[object] = []

    def client() -> None:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        for name, data in members.items():
            connection.request("GET", f"/openclipart/{name}")
            if connection.getresponse().read() != data:
                failures.append(name)
        connection.close()

    threads = [threading.Thread(target=client) for _ in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures


def test_server_program_serves_the_real_pack_and_says_if_the_port_is_taken(tmp_path):
    pack = list(labeled_members(DEMO / "openclipart.tar"))
    ready = tmp_path / "ready"
    command = [sys.executable, str(DEMO / "server.py"), "--port"]
    with subprocess.Popen(
        [*command, "0", "--ready-file", str(ready)], stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            line = process.stdout.readline()
            assert line.startswith(f"serving {len(pack)} images on http://127.0.0.1:")
            url = line.split()[-1]
            wait_for(ready.exists)
            assert ready.read_text() == url
            port = int(url.rstrip("/").rpartition(":")[2])
            key, data, _ = pack[7]
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            connection.request("GET", f"/openclipart/{key}.jpg")
            assert connection.getresponse().read() == data
            connection.close()
            second = subprocess.run([*command, str(port)], capture_output=True, text=True)
            assert second.returncode == 1
            assert second.stderr.count("\n") == 1
            assert f"port {port} is in use" in second.stderr
        finally:
            process.terminate()
        assert process.wait(timeout=10) == 0
    missing = subprocess.run([*command, "0", "--tar", "gone.tar"], capture_output=True, text=True)
    assert missing.returncode == 1 and missing.stderr.startswith("server: gone.tar: not readable")


# run.py
def wait_for(condition, limit: float = 20) -> None:
    """Wait until `condition()` holds; fail after `limit` seconds."""
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


def run_program(tar: Path, port: int, *command: str) -> list[str]:
    """Return the command line of run.py around `command`."""
    options = ["--port", str(port), "--tar", str(tar)]
    return [sys.executable, str(DEMO / "run.py"), *options, "--", *command]


FETCH = """
import sys, urllib.request
data = urllib.request.urlopen(sys.argv[1]).read()
sys.stdout.write(str(len(data)))
sys.exit(int(sys.argv[2]))
"""


@pytest.mark.parametrize("code", [0, 7])
def test_run_serves_returns_the_commands_code_and_stops_the_server(tmp_path, code):
    members = small_tar(tmp_path / "small.tar")
    port = free_port()
    url = f"http://127.0.0.1:{port}/openclipart/p1.jpg"
    # A proxy in the environment must not be asked for this machine's own pages by run.py.
    done = subprocess.run(
        run_program(tmp_path / "small.tar", port, sys.executable, "-c", FETCH, url, str(code)),
        capture_output=True, text=True, timeout=60,
        env={**os.environ, "http_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1"},
    )  # fmt: skip
    assert done.returncode == code
    assert done.stdout == str(len(members["p1.jpg"]))
    assert demo_run.identity(port) is None


def test_run_uses_a_server_of_the_same_pack_and_refuses_another(tmp_path, served):
    port, _ = served
    small_tar(tmp_path / "other.tar", n=4)
    assert demo_run.run(["true"], port, tmp_path / "small.tar") == 0
    assert demo_run.identity(port), "the server that was there is left alone"
    done = subprocess.run(
        run_program(tmp_path / "other.tar", port, "true"), capture_output=True, text=True
    )
    assert done.returncode == 1
    assert done.stderr.startswith(f"demo: port {port} is in use by another program")
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        threading.Thread(target=lambda: mute.accept()[0].close(), daemon=True).start()
        assert demo_run.run(["true"], mute.getsockname()[1], tmp_path / "small.tar") == 1


def test_run_without_a_tar_or_a_command_says_so(tmp_path, capsys):
    assert demo_run.run(["true"], free_port(), tmp_path / "gone.tar") == 1
    assert "not readable as a tar" in capsys.readouterr().err
    small_tar(tmp_path / "small.tar")
    port = free_port()
    assert demo_run.run(["/no/such/program"], port, tmp_path / "small.tar") == 127
    assert "cannot be started" in capsys.readouterr().err
    assert demo_run.identity(port) is None


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_reach_the_command_once_and_the_server_ends(tmp_path, number):
    small_tar(tmp_path / "small.tar")
    port, log = free_port(), tmp_path / "log"
    script = (
        "import signal, sys, time\n"
        "log = open(sys.argv[1], 'a', buffering=1)\n"
        "def on(number, frame):\n"
        "    log.write(f'{number}\\n'); time.sleep(0.3); sys.exit(9)\n"
        "signal.signal(signal.SIGINT, on); signal.signal(signal.SIGTERM, on)\n"
        "log.write('up\\n'); time.sleep(60)\n"
    )
    process = subprocess.Popen(
        run_program(tmp_path / "small.tar", port, sys.executable, "-c", script, str(log))
    )
    wait_for(lambda: log.exists() and log.read_text() == "up\n")
    assert demo_run.identity(port)
    process.send_signal(number)
    assert process.wait(timeout=20) == 9
    assert log.read_text() == f"up\n{int(number)}\n"
    assert demo_run.identity(port) is None


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's parent-death signal")
def test_a_killed_run_leaves_no_server(tmp_path):
    small_tar(tmp_path / "small.tar")
    port, log = free_port(), tmp_path / "log"
    process = subprocess.Popen(
        run_program(tmp_path / "small.tar", port, "sh", "-c", f"echo $$ > {log}; exec sleep 60")
    )
    wait_for(lambda: log.exists() and log.read_text())
    process.kill()
    process.wait()
    wait_for(lambda: demo_run.identity(port) is None)
    wait_for(lambda: not Path(f"/proc/{log.read_text().strip()}/cmdline").exists())
