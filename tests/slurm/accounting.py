"""slurmdbd with its database and munge, for the test cluster `--accounting`."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

DBD_CONF = Path("/etc/slurm/slurmdbd.conf")
_PORT = 13306

_CONF = """\
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={port}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm
LogFile={folder}/log/slurmdbd.log
PidFile={folder}/run/slurmdbd.pid
"""


def start(folder: Path, environment: dict[str, str]) -> None:
    """Start munged, mariadbd and slurmdbd with all files in `folder`; register the cluster."""
    _munge(folder, environment)
    _database(folder, environment)
    # slurmdbd refuses a configuration that others may read.
    (folder / "slurmdbd.conf").touch(mode=0o600)
    (folder / "slurmdbd.conf").write_text(_CONF.format(folder=folder, port=_PORT))
    DBD_CONF.unlink(missing_ok=True)
    DBD_CONF.symlink_to(folder / "slurmdbd.conf")
    _run(["slurmdbd"], environment)
    _until(lambda: _run(["sacctmgr", "--noheader", "list", "cluster"], environment, check=False))
    for what in (["cluster", "mini"], ["account", "default"], ["user", "root", "account=default"]):
        _run(["sacctmgr", "--immediate", "--quiet", "add", *what], environment)


def _munge(folder: Path, environment: dict[str, str]) -> None:
    key = folder / "munge.key"
    key.touch(mode=0o400)
    key.write_bytes(os.urandom(128))
    run, log = folder / "run", folder / "log"
    _run(
        ["munged", f"--key-file={key}", f"--socket={run}/munge.socket",
         f"--pid-file={run}/munged.pid", f"--seed-file={run}/munged.seed",
         f"--log-file={log}/munged.log", "--force"],
        environment,
    )  # fmt: skip


def _database(folder: Path, environment: dict[str, str]) -> None:
    data, socket = folder / "database", folder / "run" / "mariadb.socket"
    _run(
        ["mariadb-install-db", "--no-defaults", "--user=root", f"--datadir={data}",
         "--auth-root-authentication-method=normal", "--skip-test-db"],
        environment,
    )  # fmt: skip
    with (folder / "log" / "mariadb.log").open("wb") as log:
        subprocess.Popen(
            ["mariadbd", "--no-defaults", "--user=root", f"--datadir={data}",
             f"--socket={socket}", f"--port={_PORT}", "--bind-address=127.0.0.1",
             f"--pid-file={folder}/run/mariadb.pid", "--innodb-buffer-pool-size=32M"],
            env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
    client = ["mariadb", "--no-defaults", "--user=root", f"--socket={socket}"]
    _until(lambda: _run([*client, "-e", "SELECT 1"], environment, check=False))
    grant = "GRANT ALL ON slurm.* TO slurm@'%' IDENTIFIED BY 'slurm'"
    _run([*client, "-e", grant], environment)


def _run(command: list[str], environment: dict[str, str], check: bool = True) -> bool:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    if check and done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr or done.stdout}")
    return done.returncode == 0


def _until(condition: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError("the accounting database does not answer")
        time.sleep(0.2)
