"""`mlcd run`: Snakemake, which continues by itself where a killed one stopped.

    mlcd run --profile profiles/slurm        any options of snakemake's

A Snakemake that was killed leaves its lock, and its jobs in the queue. This wrapper recognizes
both. It holds a lease (:mod:`mlcd.launch.lease`) on the working directory while Snakemake runs, so
that of two, on any machines, only one works. Before Snakemake starts it ends the killed one's jobs
that still wait in the queue, and lets those that run finish: what they make is then taken, and
no chunk is worked on twice. (Gangs are not among them: their drivers take them over. A Snakemake
started without this wrapper submits such jobs again; these wait for the running ones by the
leases.)
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from mlcd import __version__
from mlcd.commands.run.adopt_outputs import adopt
from mlcd.commands.run.last_words import last_words
from mlcd.config import check_shape
from mlcd.launch.lease import Lease, describe, is_gone
from mlcd.launch.snakemake import announced, locked
from mlcd.slurm import client
from mlcd.utils import disk, project
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER, setup_logging
from mlcd.utils.processes import machine

_PR_SET_PDEATHSIG = 1
#: Seconds between questions to Slurm, and between lines to the user.
_POLL, _TELL_EVERY = 10.0, 60.0
#: Options of Snakemake by which it shows something and makes nothing.
_LOOKING_ON = (
    "dryrun", "list_rules", "list_target_rules", "dag", "rulegraph", "filegraph", "d3dag",
    "summary", "detailed_summary", "report", "lint", "list_changes", "list_input_changes",
    "list_params_changes", "list_untracked", "list_conda_envs", "print_compilation",
)  # fmt: skip
_HELP = """usage: mlcd run [options of snakemake]

Run Snakemake; resume where a killed one stopped. All options are Snakemake's:
`mlcd run --profile profiles/slurm`. Without a Snakefile in this folder, the project of --directory
is run, or the nearest one above, with that folder as working directory. A project has a Snakefile,
or a config.yaml and profiles, as `mlcd init` makes it; the Snakefile is then mlcd's own. Interrupt
it by Ctrl-C: its Slurm jobs are canceled."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Take everything: the options are Snakemake's."""
    parser.add_argument("arguments", nargs="*")


def run(arguments: argparse.Namespace, section: None) -> NoReturn:
    """Run Snakemake and exit with its status. Raises :class:`UserError` if another one lives."""
    words = arguments.arguments
    if words in (["--help"], ["-h"]):
        print(_HELP)
        raise SystemExit(0)
    setup_logging(None, "run")
    # What a killed run left half-made is made again.
    options = _options(words)
    place = _find_snakefile(options)
    _check_config_files(options)
    _tell_of_waiting()
    snakemake = [sys.executable, "-m", "snakemake", "--rerun-incomplete", *place, *words]
    if options.dryrun and (refused := disk.may_write(Path(options.directory or ".").resolve())):
        # Snakemake keeps its own records there.
        raise refused
    if any(getattr(options, name) for name in _LOOKING_ON):
        # Changes nothing, and may look on while another works.
        raise SystemExit(_supervised(snakemake))
    folder, snakefile = Path(options.directory or "."), options.snakefile
    with _directory_lease(folder):
        _refuse_unknown_lock(folder)
        _settle_old_jobs(folder)
        if locked(folder):
            adopt(folder, snakefile)
            LOGGER.info("the Snakemake that locked this directory is gone; unlocking")
            done = subprocess.run([*snakemake, "--unlock"], capture_output=True, text=True)
            if done.returncode != 0:
                raise UserError(f"snakemake --unlock failed: {done.stdout}{done.stderr}".strip())
        status = _supervised(snakemake)
    if status == 0:
        for line in last_words(folder):
            LOGGER.info("%s", line)
    if status and disk.is_full(folder):
        # Snakemake's own records do not fit either, and it names no file.
        raise disk.full(folder.resolve())
    raise SystemExit(status)


def _options(words: list[str]) -> argparse.Namespace:
    """Return Snakemake's own reading of its options: they may be shortened, or joined (``-np``)."""
    from snakemake.cli import get_argument_parser
    from snakemake.exceptions import CliException

    # To word its help, the Slurm plugin asks Slurm, and waits for a controller that is away.
    path = os.environ.get("PATH", os.defpath)
    os.environ["PATH"] = ""
    try:
        options: argparse.Namespace = get_argument_parser().parse_known_args(words)[0]
    except CliException as error:
        raise UserError(f"mlcd run: {' '.join(str(error).split())}") from None
    finally:
        os.environ["PATH"] = path
    return options


def _check_config_files(options: argparse.Namespace) -> None:
    """Read the config files that the command line names. Raises :class:`UserError`.

    Snakemake reads them before any rule does, and names neither a broken file nor its line. Those
    of a workflow that imports the rules hold what it likes.
    """
    snakefile = options.snakefile or project.own_snakefile(Path.cwd())
    if snakefile and project.has_rules(Path(snakefile)):
        for path in options.configfile or []:
            check_shape(path)


def _tell_of_waiting() -> None:
    """Say why Snakemake begins late where Slurm's controller is away: its plugin asks it first."""
    if not shutil.which("scontrol"):
        return
    answer = client.call("scontrol", "ping", timeout=3)
    if answer is None or answer.returncode != 0:
        LOGGER.warning("Slurm's controller does not answer; Snakemake asks it first, for 10 s")


def _find_snakefile(options: argparse.Namespace) -> list[str]:
    """Set `options` to the project's Snakefile and folder; return them as options of Snakemake.

    Raises :class:`UserError` if there is neither a Snakefile nor a config.
    """
    here = Path.cwd()
    if options.snakefile or project.own_snakefile(here):
        return []
    given = [Path(options.directory).resolve()] if options.directory else []
    for folder in [*given, here, *here.parents]:
        if snakefile := project.snakefile_of(folder):
            break
    else:
        snakefile, folder = project.SNAKEFILE, [*given, here][0]
        if not options.configfile and not (folder / "config.yaml").is_file():
            raise UserError(
                f"{here}: no Snakefile and no project here or above; start in the project's "
                "folder, give --directory, or make a project: mlcd init DIR"
            )
    options.snakefile = str(snakefile)
    options.directory = options.directory or str(folder)
    of_mlcd = snakefile == project.SNAKEFILE and not snakefile.is_relative_to(folder)
    LOGGER.info("%s in %s", f"Snakefile of mlcd {__version__}" if of_mlcd else "Snakefile", folder)
    return ["--snakefile", options.snakefile, "--directory", options.directory]


@contextlib.contextmanager
def _directory_lease(folder: Path) -> Iterator[None]:
    """Be this directory's only Snakemake. Raises :class:`UserError` naming a live one."""
    lease = Lease(folder / ".snakemake" / "mlcd-run", [], [folder.resolve()])
    told = False
    while (holder := lease.attempt()) is not None:
        if holder["seen_alive"] or _is_here(holder):
            raise UserError(
                f"{folder.resolve()}: Snakemake already works here, {describe(holder)}; "
                "wait for it or end it there"
            )
        if not told:
            LOGGER.info("checking whether %s still lives: two minutes", describe(holder))
            told = True
        time.sleep(2)
    try:
        yield
    finally:
        lease.release()


def _is_here(holder: dict[str, Any]) -> bool:
    return holder.get("machine") == machine()


def _refuse_unknown_lock(folder: Path) -> None:
    """Raise :class:`UserError` if a Snakemake not started by us holds, or may hold, the lock."""
    if not locked(folder):
        return
    other = announced(folder)
    if other is None:
        raise UserError(
            f"{folder.resolve()}: locked by a Snakemake of which nothing is known; "
            "if none runs here, on any machine: snakemake --unlock"
        )
    if _is_here(other):
        if not is_gone(other, 0):
            raise UserError(
                f"{folder.resolve()}: Snakemake already works here, {describe(other)}; "
                "wait for it or end it"
            )
    elif not other.get("by_run"):
        raise UserError(
            f"{folder.resolve()}: locked by a Snakemake on another machine, {describe(other)}; "
            "if it is gone: snakemake --unlock"
        )


def _settle_old_jobs(folder: Path) -> None:
    """Cancel a killed Snakemake's jobs that wait in Slurm's queue; wait for those that run."""
    waiting, running = _old_jobs(folder)
    if waiting:
        LOGGER.info("canceling %d jobs of the earlier run that had not started", len(waiting))
        client.call("scancel", *waiting)
    for job_id in running:
        # Were it to start again later, it would begin by removing what others have made by then.
        client.call("scontrol", "update", f"JobId={job_id}", "Requeue=0")
    told = 0.0
    while running:
        if time.monotonic() - told >= _TELL_EVERY:
            told = time.monotonic()
            LOGGER.info(
                "waiting for %d jobs of the earlier run that still work; not to wait: scancel %s",
                len(running), " ".join(running[:10] + ["…"] * (len(running) > 10)),
            )  # fmt: skip
        time.sleep(_POLL)
        running = _old_jobs(folder)[1]


def _old_jobs(folder: Path) -> tuple[list[str], list[str]]:
    """Return the ids of waiting and of running jobs of the Slurm executor in this directory.

    No Snakemake works here, so they are nobody's.
    """
    waiting: list[str] = []
    running: list[str] = []
    # The executor's own folder: without it no job was ever submitted from here.
    if not (folder / ".snakemake" / "slurm_logs").is_dir() or not shutil.which("squeue"):
        return waiting, running
    command = ["squeue", "--me", "--noheader", "--format=%i|%T|%k|%Z"]
    while (listing := client.call(*command)) is None or listing.returncode != 0:
        LOGGER.info("Slurm's controller does not answer; waiting")
        time.sleep(_POLL)
    for line in listing.stdout.splitlines():
        job_id, state, comment, place = line.split("|", 3)
        if not comment.startswith("rule_") or Path(place) != folder.resolve():
            continue
        if state in ("PENDING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT"):
            waiting.append(job_id)
        else:
            # squeue lists no job that has ended; of the others some stop, signal or resize.
            running.append(job_id)
    return waiting, running


def _supervised(command: list[str]) -> int:
    """Run the command to its end in a process group of its own; return its exit status.

    SIGINT goes to the whole group, as a terminal's Ctrl-C does, wherever it came from: Snakemake
    alone would wait for its local jobs, the gangs' drivers among them. SIGTERM goes to Snakemake,
    which then starts nothing more and waits. If this process is killed, Snakemake is too.
    """
    parent = os.getpid()

    def prepare() -> None:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)

    process = subprocess.Popen(
        command, process_group=0, preexec_fn=prepare, env={**os.environ, "MLCD_RUN": "1"}
    )
    before = {
        number: signal.signal(number, _passing_on(process, send))
        for number, send in ((signal.SIGINT, os.killpg), (signal.SIGTERM, os.kill))
    }
    try:
        status = process.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return status if status >= 0 else 128 - status


def _passing_on(
    process: subprocess.Popen[bytes], send: Callable[[int, int], None]
) -> Callable[[int, Any], None]:
    def handler(number: int, frame: Any) -> None:
        with contextlib.suppress(ProcessLookupError):
            send(process.pid, number)

    return handler
