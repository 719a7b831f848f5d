"""What a driver asks of Slurm until it is answered: nothing may be started on a guess."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

from mlcd.slurm import client
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER

#: Seconds that a controller may be away when a job is to be submitted.
_AWAY = 900.0
#: Seconds between questions that nobody answers.
_PAUSE = 10.0


def submit(send: Callable[[], str], name: str) -> str:
    """Call `send` until the controller takes the job `name`, and never twice; return its id.

    Raises :class:`UserError` if Slurm refuses it, or is away for a quarter of an hour.
    """
    import submitit

    end = time.monotonic() + _AWAY
    while True:
        try:
            return send()
        except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError,
                subprocess.SubprocessError) as error:  # fmt: skip
            text = str(error)
            words = ("Unable to contact", "timed out", "Connection refused", "not responding")
            if not any(word in text for word in words) or time.monotonic() > end:
                lines = [line for line in text.splitlines() if "error" in line.lower()]
                reason = (lines or text.splitlines() or ["no reason given"])[-1].strip()
                raise UserError(
                    f"sbatch refused the job: {reason}; check --partition, --account, --mem-mb, "
                    "--timeout-min and --slurm-option"
                ) from None
        _away("submitting")
        # It may have taken the job and not lived to say so.
        while (found := client.find(name)) is None:
            _away("submitting")
        if found:
            return found


def find(name: str, record: Path) -> str:
    """Return the id of a job that was submitted just before its driver was killed, or "".

    `record`: the file in which the job is written down, for the user.
    """
    _need_slurm(f"a job named {name}", record)
    # A sbatch that outlived its driver may be on its way.
    time.sleep(2)
    while (job_id := client.find(name)) is None:
        _away("finding the job of an earlier call")
    return job_id


def wait_for_answer(watch: client.Watch, record: Path) -> client.Status:
    """Return how the job of `watch` is, however long Slurm takes to say so."""
    _need_slurm(f"job {watch.job_id}", record)
    while (status := watch.look(now=True)).state == "UNKNOWN":
        _away(f"asking for job {watch.job_id}")
    return status


def _need_slurm(job: str, record: Path) -> None:
    if shutil.which("scontrol") is None:
        raise UserError(
            f"{record}: {job} of an earlier call may run, and this machine has no Slurm to ask; "
            "start where Slurm is, or remove this file if the job is gone"
        )


def _away(what: str) -> None:
    LOGGER.info("%s: Slurm's controller does not answer; waiting", what)
    time.sleep(_PAUSE)
