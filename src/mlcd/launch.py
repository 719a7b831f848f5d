"""Run one function on N ranks at once: submitit starts them, this module watches over them.

    result = run_gang(function, kwargs, state_dir, Resources(launcher="local", ranks_per_node=2))

The calling process is the driver. It submits a gang (processes of this machine, or one Slurm job),
shows rank 0's log, ends all ranks as soon as one fails, and ends them when it is interrupted. The
gang outlives a killed driver: its job is recorded in the state folder, and the next call waits for
the live job instead of starting a second writer.

Within a gang's folder each rank leaves `rank-K.json` at its start and `rank-K.done` at its end. The
first rank that fails creates `failed.json` (creation of that name is exclusive, so there is one
first); every other rank sees it and ends, even where no driver lives.
"""

from __future__ import annotations

import dataclasses
import fcntl
import json
import logging
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mlcd.errors import UserError
from mlcd.files import write_json
from mlcd.gang import FAILED, RANK_LOG, Task, free_port, run_inline
from mlcd.jobs import Job, LocalJob, SlurmJob
from mlcd.progress import LOGGER

#: Seconds between looks at the gang: a failed rank is noticed within this time.
_POLL = 0.2
#: Seconds that ranks may take to end after the first of them has finished.
_GRACE = 120.0
_LINES = 20


@dataclasses.dataclass(frozen=True)
class Resources:
    """Where and how wide a gang runs.

    `launcher`: ``local`` (this machine), ``slurm``, or ``inline`` (one rank in this process).
    `threads` a rank; `gpus`: one GPU a rank. `timeout_min`: time limit of the job, after which it
    is requeued and goes on from its checkpoint. `options`: further submitit parameters, such as
    ``slurm_partition``.
    """

    launcher: str = "local"
    nodes: int = 1
    ranks_per_node: int = 1
    threads: int = 1
    gpus: bool = False
    timeout_min: int = 7 * 24 * 60
    options: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.launcher not in ("local", "slurm", "inline"):
            raise UserError(f"--launcher: expected local, slurm or inline, got {self.launcher!r}")
        if min(self.nodes, self.ranks_per_node, self.threads, self.timeout_min) < 1:
            raise UserError("--nodes, --ranks-per-node, --threads, --timeout-min: expected ≥ 1")
        if self.launcher == "local" and self.nodes > 1:
            raise UserError("--nodes: the local launcher has one machine; use --launcher slurm")
        if self.launcher == "inline" and self.ranks > 1:
            raise UserError("--launcher inline runs one rank; use --launcher local for more")

    @property
    def ranks(self) -> int:
        """World size."""
        return self.nodes * self.ranks_per_node


def add_arguments(parser: Any, *, ranks_per_node: int = 1) -> None:
    """Add the options from which :func:`resources` builds a :class:`Resources`."""
    add = parser.add_argument
    add("--launcher", default="local", choices=("local", "slurm", "inline"),
        help="local: ranks on this machine; slurm: one Slurm job; inline: one rank in this process "
        "[local]")  # fmt: skip
    add("--nodes", type=int, default=1, metavar="N", help="machines [1]")
    add("--ranks-per-node", type=int, default=ranks_per_node, metavar="N",
        help=f"processes a machine, one a GPU where there are GPUs [{ranks_per_node}]")  # fmt: skip
    add("--threads", type=int, default=0, metavar="N",
        help="threads a rank; 0: the machine's cores divided by --ranks-per-node [0]")  # fmt: skip
    add("--device", default="auto", choices=("auto", "cpu", "cuda"),
        help="auto: cuda if this machine has one, else cpu [auto]")  # fmt: skip
    add("--timeout-min", type=int, default=7 * 24 * 60, metavar="N",
        help="time limit of the job in minutes; at its end the job is requeued and goes on from "
        "its last checkpoint [a week]")  # fmt: skip
    add("--slurm-option", action="append", default=[], metavar="KEY=VALUE",
        help="further option of the Slurm job, such as partition=gpu; may be repeated")  # fmt: skip


def resources(arguments: Any) -> Resources:
    """Build :class:`Resources` from parsed options. Raises :class:`UserError`."""
    options = {}
    for item in arguments.slurm_option:
        key, equals, value = item.partition("=")
        if not (key and equals):
            raise UserError(f"--slurm-option: expected KEY=VALUE, got {item!r}")
        options[f"slurm_{key}"] = int(value) if value.isdigit() else value
    cores = len(os.sched_getaffinity(0))
    return Resources(
        launcher=arguments.launcher,
        nodes=arguments.nodes,
        ranks_per_node=arguments.ranks_per_node,
        threads=arguments.threads or max(1, cores // max(1, arguments.ranks_per_node)),
        gpus=pick_device(arguments.device) == "cuda",
        timeout_min=arguments.timeout_min,
        options=options,
    )


def pick_device(device: str) -> str:
    """Return ``cuda`` or ``cpu`` for ``auto``, judged by this machine; others unchanged."""
    if device != "auto":
        return device
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def run_gang(
    function: Callable[..., Any], kwargs: dict[str, Any], state_dir: Path, resources: Resources
) -> Any:
    """Call `function(**kwargs)` on every rank; return rank 0's result (plain JSON values).

    `function` must be importable by name. Each rank finds RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR
    and MASTER_PORT in its environment. If a job that an earlier driver started from the same
    `state_dir` is still alive, it is waited for and nothing is started. Raises :class:`UserError`
    with the last lines of the rank that failed first (or with that rank's own UserError).
    """
    if resources.launcher == "inline":
        return run_inline(function, kwargs, resources.threads)
    home = state_dir / "gang"
    home.mkdir(parents=True, exist_ok=True)
    with _interruptible():
        job = _attach(home)
        if job is None:
            with _locked(home / "lock"):
                job = _attach(home) or _submit(home, function, kwargs, resources)
        try:
            return _watch(job)
        except BaseException:
            job.end()
            raise


def _submit(
    home: Path, function: Callable[..., Any], kwargs: dict[str, Any], resources: Resources
) -> Job:
    """Start a gang in a fresh folder and record it in `home`/job.json."""
    import submitit

    for old in home.glob("job-*"):
        shutil.rmtree(old)
    folder = home / f"job-{time.time_ns()}"
    folder.mkdir()
    executor = submitit.AutoExecutor(folder=folder, cluster=resources.launcher)
    executor.update_parameters(
        nodes=resources.nodes,
        tasks_per_node=resources.ranks_per_node,
        gpus_per_node=resources.ranks_per_node if resources.gpus else 0,
        timeout_min=resources.timeout_min,
        stderr_to_stdout=True,
    )
    if resources.launcher == "slurm":
        executor.update_parameters(
            cpus_per_task=resources.threads,
            # One failed rank ends the job at once, whether or not a driver watches.
            slurm_srun_args=["--kill-on-bad-exit=1"],
            **resources.options,
        )
    task = Task(function, kwargs, folder, local=resources.launcher == "local")
    with _environment(resources), _stderr_to(folder / "controller.log"):
        submitted = executor.submit(task)
    kind = LocalJob if resources.launcher == "local" else SlurmJob
    job = kind.started(submitted.job_id, folder, resources.ranks)
    write_json(home / "job.json", {"launcher": resources.launcher, **job.record()})
    LOGGER.info("started %d ranks as %s job %s", resources.ranks, resources.launcher, job.job_id)
    return job


def _attach(home: Path) -> Job | None:
    """Return the recorded job if it is alive, else None."""
    try:
        record = json.loads((home / "job.json").read_text())
        kind = LocalJob if record.pop("launcher") == "local" else SlurmJob
        job = kind.from_record(record)
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    if not job.alive():
        return None
    LOGGER.info("job %s of an earlier call is alive: waiting for it", job.job_id)
    return job


def _watch(job: Job) -> Any:
    """Wait for the gang's end; return its result or raise :class:`UserError`."""
    log = _Tail(job.folder / RANK_LOG)
    finished: float | None = None
    while True:
        # Asked before the files are read: a rank writes its files before it ends.
        alive = job.alive()
        failed = (job.folder / FAILED).exists()
        dead = job.dead_ranks()
        log.show()
        if dead and (alive or failed):
            # Before the failures of the others, which lost their peer.
            raise UserError(_story(job, {"rank": dead[0], "kind": "killed"}))
        if failed:
            raise UserError(_story(job, json.loads((job.folder / FAILED).read_text())))
        done = [rank for rank in range(job.ranks) if job.done(rank)]
        if len(done) == job.ranks:
            job.wait_end(_GRACE)
            return json.loads((job.folder / "rank-0.done").read_text())["result"]
        if not alive:
            missing = next(rank for rank in range(job.ranks) if rank not in done)
            raise UserError(_story(job, {"rank": missing, "kind": "ended"}))
        if done:
            finished = finished or time.monotonic()
            if time.monotonic() - finished > _GRACE:
                missing = next(rank for rank in range(job.ranks) if rank not in done)
                raise UserError(_story(job, {"rank": missing, "kind": "stuck"}))
        time.sleep(_POLL)


def _story(job: Job, failure: dict[str, Any]) -> str:
    """Return the message for the user: what failed first, and the last lines it wrote."""
    rank = failure["rank"]
    if failure["kind"] == "user":
        return failure["message"]
    what = {
        "error": f"failed: {failure.get('message', '')}",
        "killed": "was killed from outside (out of memory?)",
        "ended": "ended without a word: its job was cancelled or ran out of time",
        "stuck": "did not end after the others had finished",
    }[failure["kind"]]
    lines = job.output(rank).splitlines()[-_LINES:]
    tail = "".join(f"\n  | {line}" for line in lines)
    return f"rank {rank} of {job.ranks} {what}; the other ranks were ended. Its last lines:{tail}"


class _Tail:
    """Copies what rank 0 appends to its log to where this process logs (it has its own times)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._position = path.stat().st_size if path.exists() else 0

    def show(self) -> None:
        if self._path.exists():
            with self._path.open("rb") as handle:
                handle.seek(self._position)
                text = handle.read()
            # Whole lines only, so that a character is never cut in two.
            text = text[: text.rfind(b"\n") + 1]
            self._position += len(text)
            for handler in LOGGER.handlers:
                if isinstance(handler, logging.StreamHandler):
                    handler.stream.write(text.decode("utf-8", "replace"))
                    handler.flush()


@contextmanager
def _environment(resources: Resources) -> Iterator[None]:
    """Set the variables that ranks inherit; restore the driver's own afterwards."""
    # A gang may be launched from inside another job; its place in that job is not ours.
    foreign = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    before = dict(os.environ)
    for name in foreign:
        os.environ.pop(name, None)
    os.environ["OMP_NUM_THREADS"] = str(resources.threads)
    # Whatever this process can import, its ranks can, however it was started.
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    if resources.launcher == "local":
        os.environ["MASTER_PORT"] = str(free_port())
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextmanager
def _stderr_to(path: Path) -> Iterator[None]:
    """Send what submitit's controller process says to a file: an interrupt is a traceback to it."""
    sys.stderr.flush()
    with path.open("wb") as handle:
        before = os.dup(2)
        os.dup2(handle.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock while a job is submitted: two drivers never start two gangs."""
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


@contextmanager
def _interruptible() -> Iterator[None]:
    """Turn SIGTERM into KeyboardInterrupt, as SIGINT is, so that ranks are ended on the way out."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(signum: int, frame: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
