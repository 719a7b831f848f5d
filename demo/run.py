"""Run a command while the demo's images are served, and stop the server whatever happens.

    python demo/run.py -- snakemake --profile profiles/local

Returns the command's exit code. A server of the same pack that is already there is used and left
alone.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import http.client
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
import urllib.error
import urllib.request
from pathlib import Path

from server import PORT, Pack

#: Seconds that the server may take to index the tar and listen.
START_LIMIT = 30
_PDEATHSIG = 1
# No proxy of the environment may stand between this program and its own machine.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def main() -> int:
    """Parse the command line and run; returns the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--port", type=int, default=PORT)
    parser.add_argument("--tar", type=Path, default=Path(__file__).parent / "openclipart.tar")
    parser.add_argument("command", nargs="+", help="after --: the program and its arguments")
    arguments = parser.parse_args()
    return run(arguments.command, arguments.port, arguments.tar)


def run(command: list[str], port: int, tar: Path) -> int:
    """Serve `tar` on `port` while `command` runs; return its exit code, or 1 without a server."""
    try:
        expected = Pack(tar).identity
    except (OSError, tarfile.TarError) as error:
        print(f"demo: {tar}: not readable as a tar ({error})", file=sys.stderr)
        return 1
    received: list[int] = []
    early: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def forward(number: int, _frame: object) -> None:
        received.append(number)
        if child is None:
            early.append(number)
        else:
            _send(child, number)

    # Handlers come first: from here on no signal can leave a server behind.
    before = {
        number: signal.signal(number, forward)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    server = None
    try:
        found = identity(port)
        if found is None:
            server = _start_server(port, tar)
            if not _wait_until_ready(server, port, expected, received):
                return 128 + received[0] if received else 1
        elif found != expected:
            print(
                f"demo: port {port} is in use by another program; stop it, or wait until it ends",
                file=sys.stderr,
            )
            return 1
        if received:
            return 128 + received[0]
        try:
            # In a group of its own: Ctrl-C then reaches it once, through this program, and not a
            # second time from the terminal, which Snakemake would take for impatience.
            # A background group that read from the terminal would be stopped: it has no input.
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                process_group=0,
                preexec_fn=_die_with_parent,
            )
        except OSError as error:
            print(f"demo: {command[0]}: cannot be started ({error.strerror})", file=sys.stderr)
            return 127
        for number in early:
            _send(child, number)
        code = child.wait()
        return code if code >= 0 else 128 - code
    finally:
        if server is not None:
            _stop(server)
        for number, handler in before.items():
            signal.signal(number, handler)


def identity(port: int) -> str | None:
    """Return the identity of the pack served on `port`; '' for another program; None for none."""
    try:
        with _OPENER.open(f"http://127.0.0.1:{port}/", timeout=5) as answer:
            return str(json.loads(answer.read(4096))["pack"])
    except urllib.error.HTTPError:
        return ""
    except urllib.error.URLError as error:
        return None if isinstance(error.reason, ConnectionRefusedError) else ""
    except (OSError, http.client.HTTPException, ValueError, LookupError, TypeError):
        return ""


def _send(child: subprocess.Popen[bytes], number: int) -> None:
    """Pass a signal on: Ctrl-C to the whole group, as a terminal does, others to the command."""
    if child.poll() is not None:
        return
    if number == signal.SIGINT:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, number)
    else:
        child.send_signal(number)


def _start_server(port: int, tar: Path) -> subprocess.Popen[bytes]:
    """Start the server out of reach of the terminal's Ctrl-C, so that it outlives the command."""
    script = Path(__file__).parent / "server.py"
    command = [sys.executable, str(script), "--port", str(port), "--tar", str(tar)]
    return subprocess.Popen(
        command, stdout=subprocess.DEVNULL, start_new_session=True, preexec_fn=_die_with_parent
    )


def _wait_until_ready(
    server: subprocess.Popen[bytes], port: int, expected: str, received: list[int]
) -> bool:
    """Wait until the server answers. False if it ended (it has said why), hangs, or on a signal."""
    end = time.monotonic() + START_LIMIT
    while time.monotonic() < end and not received:
        if server.poll() is not None:
            return False
        if identity(port) == expected:
            return True
        time.sleep(0.05)
    if not received:
        print(f"demo: the server did not answer within {START_LIMIT} s", file=sys.stderr)
    return False


def _stop(server: subprocess.Popen[bytes]) -> None:
    server.terminate()
    try:
        server.wait(timeout=5)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _die_with_parent() -> None:
    """On Linux, end a child with this program even if that is killed by SIGKILL."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PDEATHSIG, signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
