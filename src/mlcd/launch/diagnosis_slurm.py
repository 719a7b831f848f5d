"""Why a Slurm job ended: what srun and the kernel wrote, and the message for the user."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Collection
from typing import Any

from mlcd.launch.diagnosis import disk_is_full, of_job, of_rank, telling_rank
from mlcd.launch.jobs import Job
from mlcd.slurm.client import Status

#: srun names node, tasks and what became of them.
_TASK_ENDED = re.compile(r"srun: error: (\S+): tasks? ([\d,-]+): (.+)")
#: From here on srun itself ends tasks.
_ABORTED = re.compile(r"Terminating (StepId|job step)|Job step aborted|CANCELLED AT")


@dataclasses.dataclass(frozen=True)
class Killed:
    """A rank that srun saw end by a signal, and what srun called it (``Killed``, …)."""

    rank: int
    node: str
    word: str


@dataclasses.dataclass(frozen=True)
class End:
    """What is known of a job's end.

    `failure`: what the rank that failed first has left, if any; `killed`: the rank that was ended
    from outside, if srun named one; `canceled_here`: the driver itself has ended the job.
    """

    status: Status
    failure: dict[str, Any] | None
    killed: Killed | None
    out_of_memory: bool
    canceled_here: bool

    @property
    def restartable(self) -> bool:
        """True if the same job may go better when it is started again."""
        canceled = self.status.state == "CANCELLED" and not self.canceled_here
        told = self.failure is not None and self.failure["kind"] in ("user", "requeues")
        # Snakemake's retries ask for more memory.
        return not (canceled or told or self.out_of_memory)


def killed_rank(text: str, silent: Collection[int]) -> Killed | None:
    """Return the rank that was ended by a signal, by what srun wrote in `text`; or None.

    Once a rank has ended badly srun ends the others, by signals too. What it reports before that
    is the cause. It may be told of the death late, by its node, and see another rank exit before,
    which lost the dead one. Then the cause is the first rank that a signal ended and that is among
    the `silent` ones, which left no word themselves.
    """
    late = None
    aborted = False
    for line in text.splitlines():
        if _ABORTED.search(line):
            aborted = True
        found = _TASK_ENDED.search(line)
        if found is None or "exit code" in found[3]:
            continue
        for rank in _numbers(found[2]):
            killed = Killed(rank, found[1], found[3].strip())
            if not aborted:
                return killed
            if late is None and rank in silent:
                late = killed
    return late


def _numbers(text: str) -> list[int]:
    """Return the numbers of a list such as ``0-2,5``."""
    found: list[int] = []
    for part in text.split(","):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found


def ran_out_of_memory(text: str) -> bool:
    """True if Slurm or the kernel says so in `text`."""
    return re.search(r"oom[-_ ]kill|exceeded .*memory limit", text, re.IGNORECASE) is not None


def end_message(job: Job, end: End) -> str:
    """Return the message for the end of a Slurm job: Slurm's reason first where it has one."""
    ended = f"Slurm job {job.job_id}"
    status, failure, killed = end.status, end.failure, end.killed
    if failure and failure["kind"] == "user":
        return str(failure["message"])
    if failure and failure["kind"] == "requeues":
        return (
            f"{ended} was stopped and started again as often as --requeues allows; what is done is "
            "kept. Raise --requeues (in a profile: resource requeues) or the time limit, and start "
            "again"
        )
    if full := disk_is_full(job):
        return full
    if end.out_of_memory:
        rank = max(range(job.ranks), key=lambda rank: _memory(job, rank))
        text = (
            f"{ended} ran out of memory (Slurm: {status.state}); raise --mem-mb (resource mem_mb)."
        )
        return of_job(job, text, rank)
    if status.state == "CANCELLED" and not end.canceled_here:
        text = f"{ended} was canceled{_by(status)}; start again to resume from its checkpoint."
        return of_job(job, text, telling_rank(job, failure))
    if killed and (failure is None or failure["kind"] == "lost"):
        text = f"was killed from outside on {killed.node} ({killed.word})"
        return of_rank(job, killed.rank, f"{text}; the other ranks were ended. {ended}.")
    if failure:
        kind = "failed" if failure["kind"] == "error" else "lost another rank"
        text = f"{kind}: {failure['message']}; the other ranks were ended. {ended}."
        return of_rank(job, failure["rank"], text)
    reason = "" if status.reason in ("", "None") else f", {status.reason}"
    text = f"{ended} ended without a result (Slurm: {status.state}{reason})."
    return of_job(job, text, telling_rank(job, failure))


def _memory(job: Job, rank: int) -> int:
    """Return the last known memory of a rank in MB."""
    try:
        usage = json.loads((job.files / f"rank-{rank}.usage.json").read_text())
        return int(usage["max_rss_mb"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _by(status: Status) -> str:
    return f" ({status.reason})" if status.reason not in ("", "None") else " (scancel)"
