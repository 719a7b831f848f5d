"""Run one function on N ranks at once: on this machine, or as one Slurm job.

    result = run_gang(function, kwargs, gang_folder(output), Resources(...), stage="train")

:mod:`mlcd.launch.driver` submits a gang and watches over it, :mod:`mlcd.launch.rank` is each rank's
side, and a backend for each launcher (:mod:`mlcd.launch.backend`) knows how to start and ask.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlcd.launch.backend import Backend, recorded_job
from mlcd.launch.call import Call
from mlcd.launch.driver import Driver
from mlcd.launch.inline import InlineBackend
from mlcd.launch.jobs import Job
from mlcd.launch.jobs_local import LocalBackend
from mlcd.launch.jobs_slurm import SlurmBackend
from mlcd.launch.options import Resources

_BACKENDS: dict[str, type[Backend[Any]]] = {
    "inline": InlineBackend,
    "local": LocalBackend,
    "slurm": SlurmBackend,
}


def run_gang(
    function: Callable[..., Any],
    kwargs: dict[str, Any],
    home: Path,
    resources: Resources,
    *,
    stage: str = "gang",
    work: str | None = None,
    progress: Callable[[], Any] = lambda: None,
) -> Any:
    """Call `function(**kwargs)` on every rank; return rank 0's result (plain JSON values).

    `function` must be importable by name; `stage` names the work in logs and records. Each rank
    finds RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR and MASTER_PORT in its environment.

    `home`: where the gang is recorded (:func:`mlcd.launch.gang_files.gang_folder`), one folder for
    each output. `work`: hash of all that decides the result, by default of the call. A job of the
    same work that an earlier driver started is waited for if it is alive, and its result is taken
    if it has finished; nothing is started then. A live job of other work is an error, or is ended
    if `resources.end_other`; from the moment when a new gang is recorded, no rank of an older one
    publishes a file (:mod:`mlcd.utils.fencing`). Two calls for one output at a time are the
    caller's to prevent (:mod:`mlcd.launch.lease`).

    `progress` returns a value that changes when the work has saved something: a gang that fails
    after progress is started again.

    Raises :class:`UserError` if this machine has fewer GPUs than ranks that need one, and with the
    last lines of the rank that failed first (or with that rank's own UserError).
    """
    found = backends(resources)
    found[resources.launcher].check()
    call = Call(function, kwargs, stage)
    return Driver(call, home, resources, found, work, progress).run()


def live_job(home: Path) -> Job | None:
    """Return the job that is recorded in `home` (see :func:`run_gang`) if it is alive."""
    known = backends(Resources())
    if (found := recorded_job(home, known)) is None:
        return None
    record, job = found
    return job if known[record.launcher].is_alive(record, job, home, wait=True) else None


def backends(resources: Resources) -> dict[str, Backend[Any]]:
    """Return one backend for each launcher, by its name."""
    return {name: backend(resources) for name, backend in _BACKENDS.items()}
