"""A real Slurm cluster on one machine, for tests: one slurmctld, four slurmd, fake GPUs.

    python tests/slurm/cluster.py run -- COMMAND   cluster in namespaces of its own, COMMAND in it
    python tests/slurm/cluster.py install          the Debian packages (as root)
    python tests/slurm/cluster.py up|down|status   a cluster of this machine, without namespaces

Needs root and Debian's packages; no systemd, no cgroups, no munge daemon. Everything lies in a
scratch folder, apart from a link at /etc/slurm/slurm.conf and one line in /etc/hosts, and `run`
keeps even these two to itself where namespaces are allowed. `run -- bash` gives a shell in which
sbatch, squeue and `snakemake --profile profiles/slurm-cpu` meet the cluster.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import accounting as accounting_database
import apart
import psutil
from settings import gres_conf, slurm_conf

PACKAGES = ["slurmctld", "slurmd", "slurm-client", "munge"]
ACCOUNTING_PACKAGES = ["slurmdbd", "mariadb-server"]
LINK = Path("/etc/slurm/slurm.conf")
HOSTS = Path("/etc/hosts")
#: In the environment of every process of a cluster and of `run`: the cluster's folder.
FOLDER = "MLCD_SLURM_FOLDER"
#: Name of a file that only our folders contain.
_MARK = "mlcd-test-cluster"


class Missing(Exception):
    """What stands in the way of a cluster here, in one line, with the fix."""


def in_the_way() -> str:
    """Return which other Slurm /etc/slurm belongs to, in one line; empty if to none."""
    if (running := Cluster.here()) is not None:
        return f"a test cluster is up in {running.folder}; end it with: cluster.py down"
    if LINK.exists():
        return f"{LINK} belongs to another Slurm; use a machine or container without"
    return ""


def missing(accounting: bool = False) -> str:
    """Return what is missing for a cluster on this machine, in one line; empty if nothing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "the test cluster needs root on Linux (slurmd starts other users' jobs); try sudo"
    programs = {"slurmctld": "slurmctld", "slurmd": "slurmd", "slurm-client": "sbatch"}
    if accounting:
        programs |= {"munge": "munged", "slurmdbd": "slurmdbd", "mariadb-server": "mariadbd"}
    absent = [package for package, program in programs.items() if not shutil.which(program)]
    if absent:
        return f"not installed: {', '.join(absent)}; try: apt-get install -y {' '.join(absent)}"
    return ""


def install(accounting: bool = False) -> None:
    """Install Debian's packages. Raises :class:`Missing`."""
    if not missing(accounting):
        return
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise Missing(missing(accounting) or "no apt-get here: install Slurm by hand")
    packages = PACKAGES + (ACCOUNTING_PACKAGES if accounting else [])
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    apt = ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *packages]
    with _no_services():
        for command in (["apt-get", "update", "-qq"], apt):
            done = subprocess.run(command, env=environment, stdout=subprocess.DEVNULL)
    if done.returncode != 0:
        raise Missing(f"cannot be installed here: {' '.join(apt)}")


@contextlib.contextmanager
def _no_services() -> Iterator[None]:
    """Keep apt from starting what it installs: the machine gets programs, no running daemons."""
    policy = Path("/usr/sbin/policy-rc.d")
    if policy.exists():
        yield
        return
    policy.write_text("#!/bin/sh\nexit 101\n")
    policy.chmod(0o755)
    try:
        yield
    finally:
        policy.unlink()


class Cluster:
    """A cluster whose files lie in `folder`. :meth:`up` starts it, :meth:`down` ends it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @classmethod
    def here(cls) -> Cluster | None:
        """Return the test cluster that /etc/slurm points at, if it is one of ours."""
        folder = LINK.resolve().parent
        return cls(folder) if LINK.is_symlink() and (folder / _MARK).exists() else None

    def up(self, nodes: int = 4, accounting: bool = False) -> None:
        """Start all daemons and wait until every node is idle. Raises :class:`Missing`."""
        for name in ("state", "spool", "log", "run", "dev"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        (self.folder / _MARK).touch()
        for index in range(2):
            device = self.folder / "dev" / f"gpu{index}"
            if not device.exists():
                # The numbers of /dev/null: Slurm counts the device and nobody opens it.
                os.mknod(device, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
        (self.folder / "slurm.conf").write_text(slurm_conf(self.folder, nodes, accounting))
        (self.folder / "gres.conf").write_text(gres_conf(self.folder, nodes))
        LINK.parent.mkdir(exist_ok=True)
        LINK.unlink(missing_ok=True)
        LINK.symlink_to(self.folder / "slurm.conf")
        (LINK.parent / "gres.conf").unlink(missing_ok=True)
        (LINK.parent / "gres.conf").symlink_to(self.folder / "gres.conf")
        names = [f"node{i}" for i in range(1, nodes + 1)]
        if "node1" not in HOSTS.read_text().split():
            with HOSTS.open("a") as hosts:
                hosts.write(f"127.0.0.1 {' '.join(names)} # {_MARK}\n")
        if accounting:
            accounting_database.start(self.folder, self.environment())
        self.start_controller(clean=True)
        for name in names:
            self.start_node(name)
        self._wait(self.idle, "the nodes never became idle")

    def environment(self) -> dict[str, str]:
        """Return the environment of the daemons: this one, marked as the cluster's."""
        return {**os.environ, FOLDER: str(self.folder)}

    def start_controller(self, clean: bool = False) -> None:
        """Start slurmctld, with its saved state unless `clean`, and wait until it answers."""
        # Both keep on by themselves; -i carries on over state that is not there.
        subprocess.run(["slurmctld", *(["-c"] if clean else []), "-i"], env=self.environment(),
                       check=True, capture_output=True)  # fmt: skip
        self._wait(self.answers, "slurmctld does not answer")

    def start_node(self, name: str) -> None:
        """Start the slurmd of a node."""
        subprocess.run(["slurmd", "-N", name], env=self.environment(), check=True,
                       capture_output=True)  # fmt: skip

    def controller(self) -> psutil.Process:
        """Return the process of slurmctld."""
        return psutil.Process(int((self.folder / "run" / "slurmctld.pid").read_text()))

    def answers(self) -> bool:
        """True if slurmctld answers."""
        return _run("scontrol", "ping").returncode == 0

    def idle(self) -> bool:
        """True if no node is down and none has work."""
        states = _run("sinfo", "--noheader", "--Node", "--format=%T", "--partition=main").stdout
        return set(states.split()) == {"idle"}

    def set_node(self, name: str, state: str) -> None:
        """Set a node ``down`` (its jobs end or go back into the queue) or ``resume`` it."""
        order = ["update", f"NodeName={name}", f"State={state}", "Reason=test"]
        subprocess.run(["scontrol", *order], check=True, capture_output=True)

    def settle(self) -> None:
        """Cancel all jobs and let all nodes work again."""
        _run("scancel", "--user", "root")
        down = _run("sinfo", "--noheader", "--Node", "--format=%N", "--states=down,drain").stdout
        for name in set(down.split()):
            self.set_node(name, "resume")

    def status(self) -> str:
        """Return what sinfo says, and where the cluster lies."""
        return f"{_run('sinfo', '--Node', '--long').stdout}folder: {self.folder}\n"

    def down(self) -> None:
        """End all jobs and daemons of this cluster; no process of it is left."""
        for process in self._processes():
            if process.name() == "slurmctld" and process.status() == psutil.STATUS_STOPPED:
                process.resume()
        if self.answers():
            _run("scancel", "--user", "root", "--full")
        for number in (signal.SIGTERM, signal.SIGKILL):
            for process in self._processes():
                try:
                    process.send_signal(number)
                except psutil.NoSuchProcess:
                    continue
            end = time.monotonic() + 5
            while self._processes() and time.monotonic() < end:
                time.sleep(0.1)
        # Those that this process has taken in, see run.
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        if Cluster.here() is not None:
            for link in (LINK, LINK.parent / "gres.conf", accounting_database.DBD_CONF):
                if link.is_symlink() and self.folder in link.resolve().parents:
                    link.unlink()
        lines = HOSTS.read_text().splitlines(keepends=True)
        if any(_MARK in line for line in lines):
            HOSTS.write_text("".join(line for line in lines if _MARK not in line))

    def _processes(self) -> list[psutil.Process]:
        """Return the cluster's processes: daemons, job steps and jobs; zombies are dead.

        They are told by the folder's name in their environment, which no other process has.
        """
        mine = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid in mine or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if process.environ().get(FOLDER) == str(self.folder):
                    found.append(process)
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        return found

    def _wait(self, condition, complaint: str, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                raise Missing(f"{complaint}; see {self.folder}/log")
            time.sleep(0.1)


def _run(*command: str) -> subprocess.CompletedProcess:
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def run(command: list[str], nodes: int, accounting: bool) -> int:
    """Bring a cluster up, run `command`, tear down; return the command's exit code."""
    _become_reaper()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    cluster = Cluster(_scratch())
    try:
        cluster.up(nodes, accounting)
        process = subprocess.Popen(command, env=cluster.environment())
        while (ended := os.waitpid(-1, 0))[0] != process.pid:
            pass
        return os.waitstatus_to_exitcode(ended[1])
    finally:
        cluster.down()
        shutil.rmtree(cluster.folder, ignore_errors=True)


def _become_reaper() -> None:
    """Take in orphans: pid 1 of many containers never does, and zombies would heap up."""
    ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER


def _scratch() -> Path:
    folder = Path(tempfile.mkdtemp(prefix="mlcd-slurm-"))
    folder.chmod(0o755)
    return folder


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("run", "install", "up", "down", "status"))
    parser.add_argument("--nodes", type=int, default=4, metavar="N")
    parser.add_argument("--accounting", action="store_true", help="with slurmdbd and mariadb")
    parser.add_argument("--furnished", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("command", nargs="*", metavar="-- COMMAND", help="what run runs")
    words = sys.argv[1:]
    split = words.index("--") if "--" in words else len(words)
    arguments = parser.parse_args(words[:split])
    arguments.command = words[split + 1 :] or ["bash"]
    try:
        if arguments.what in ("run", "up") and (reason := missing(arguments.accounting)):
            raise Missing(reason)
        if arguments.what == "install":
            install(arguments.accounting)
        elif arguments.what == "run":
            if arguments.furnished:
                apart.furnish([f"node{i}" for i in range(1, arguments.nodes + 1)])
            elif apart.possible():
                apart.enter([sys.executable, sys.argv[0], "--furnished", *words])
            if reason := in_the_way():
                raise Missing(reason)
            return run(arguments.command, arguments.nodes, arguments.accounting)
        elif arguments.what == "up":
            if reason := in_the_way():
                raise Missing(reason)
            cluster = Cluster(_scratch())
            cluster.up(arguments.nodes, arguments.accounting)
            print(cluster.status(), end="")
        elif (cluster := Cluster.here()) is None:
            raise Missing("no test cluster is up; start one with: cluster.py up")
        elif arguments.what == "down":
            cluster.down()
            shutil.rmtree(cluster.folder, ignore_errors=True)
        else:
            print(cluster.status(), end="")
    except Missing as reason:
        print(f"slurm test cluster: {reason}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
