"""Messages for the user: which rank failed, and its last lines."""

from __future__ import annotations

import re
from typing import Any

from mlcd.launch.jobs import Job
from mlcd.utils import disk
from mlcd.utils.processes import CRASHES, cause_of

_LINES = 20
#: NCCL's watchdog, and gloo.
_TIMED_OUT = re.compile(
    r"[Ww]atchdog caught collective operation timeout|Timed out waiting \d+ms for|"
    r"ran for \d+ milliseconds before timing out"
)
_WHAT = {
    "error": "failed: {message}",
    "lost": "lost another rank: {message}",
    "killed": "{how} by {signal}{cause}",
    "status": "ended with exit status {status}",
    "ended": "ended without a word: its job was ended from outside",
    "stuck": "did not end after the others had finished",
}


def timed_out(job: Job) -> bool:
    """True if a rank has said that a collective waited too long.

    NCCL's watchdog ends the process by a signal: its log is all that tells.
    """
    return any(_TIMED_OUT.search(job.output(rank)) for rank in range(job.ranks))


def failure_message(job: Job, failure: dict[str, Any]) -> str:
    """Return the message for a rank's failure of which the launcher knows no more."""
    if failure["kind"] == "user":
        return str(failure["message"])
    if full := disk_is_full(job):
        return full
    values = {"message": "", "status": "?", "signal": "a signal", **failure}
    values["cause"] = cause_of(values["signal"])
    values["how"] = "crashed" if values["signal"] in CRASHES else "was killed from outside"
    what = _WHAT[failure["kind"]].format(**values)
    return of_rank(job, failure["rank"], f"{what}; the other ranks were ended.")


def disk_is_full(job: Job) -> str:
    """Return the message if the gang's disk is full: its ranks could not leave a word. Else ''."""
    if not disk.is_full(job.folder):
        return ""
    return str(disk.full(job.folder))


def of_rank(job: Job, rank: int, text: str) -> str:
    """Return "rank K of N `text`" and the rank's last lines."""
    return f"rank {rank} of {job.ranks} {text} Its last lines:{_last_lines(job, rank)}"


def of_job(job: Job, text: str, rank: int) -> str:
    """Return `text`, which is about the whole job, and the last lines of `rank`."""
    return f"{text} Last lines of rank {rank} of {job.ranks}:{_last_lines(job, rank)}"


def telling_rank(job: Job, failure: dict[str, Any] | None) -> int:
    """Return the rank whose last lines tell most: the one that failed, or one that fell silent."""
    if failure:
        return int(failure["rank"])
    return min(set(range(job.ranks)) - set(job.done()), default=0)


def _last_lines(job: Job, rank: int) -> str:
    lines = [line for line in job.output(rank).splitlines() if line.strip()][-_LINES:]
    return "".join(f"\n  | {line}" for line in lines)
