"""A corner of the machine for one test cluster: own /etc/slurm, /etc/hosts and loopback network.

Linux namespaces keep the cluster's ports and files from the machine's own Slurm, and from another
test cluster that runs at the same time. All of it is gone with the last process inside.
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
import sys
from pathlib import Path

_UNSHARE = ["unshare", "--mount", "--net", "--propagation", "private"]
_SIOCGIFFLAGS, _SIOCSIFFLAGS, _SIOCSIFADDR, _IFF_UP = 0x8913, 0x8914, 0x8916, 0x1


def possible() -> bool:
    """True if this process may make namespaces (root in most containers may not)."""
    try:
        return subprocess.run([*_UNSHARE, "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


def enter(arguments: list[str]) -> None:
    """Replace this process by `arguments`, run in namespaces of its own."""
    sys.stdout.flush()
    os.execvp(_UNSHARE[0], [*_UNSHARE, *arguments])


def furnish(names: list[str]) -> None:
    """Inside: loopback up, an empty /etc/slurm, and `names` known as this machine."""
    _loopback_up()
    Path("/etc/slurm").mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", "/etc/slurm"], check=True)
    # A file system of its own for the hosts file, which is then laid over the machine's.
    hosts = Path("/etc/slurm/hosts")
    hosts.write_text(f"127.0.0.1 localhost {socket.gethostname()} {' '.join(names)}\n")
    subprocess.run(["mount", "--bind", hosts, "/etc/hosts"], check=True)


def _loopback_up() -> None:
    """Bring the loopback up, with a second address.

    Slurm resolves names with AI_ADDRCONFIG, which fails on machines of 127.0.0.1 alone.
    """
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, _SIOCSIFADDR, _address("lo", "127.0.0.1"))
        fcntl.ioctl(control, _SIOCSIFADDR, _address("lo:1", "192.0.2.1"))
        for name in (b"lo", b"lo:1"):
            request = struct.pack("16sH14s", name, 0, b"")
            (flags,) = struct.unpack_from("H", fcntl.ioctl(control, _SIOCGIFFLAGS, request), 16)
            request = struct.pack("16sH14s", name, flags | _IFF_UP, b"")
            fcntl.ioctl(control, _SIOCSIFFLAGS, request)


def _address(name: str, address: str) -> bytes:
    """Return struct ifreq with a sockaddr_in."""
    return struct.pack(
        "16sHH4s8s", name.encode(), socket.AF_INET, 0, socket.inet_aton(address), b""
    )
