"""How a Slurm job is, asked politely, with and without an accounting database.

`squeue` and `scontrol` ask the controller, which forgets a job some minutes after its end
(MinJobAge); `sacct` asks the database, which many clusters lack and which may be away. A question
that nobody answers is no news: the job counts as it was.
"""

from __future__ import annotations

import dataclasses
import re
import subprocess
import time

#: States from which a job does not come back. COMPLETING is none: processes may still run.
ENDED = frozenset(
    ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "GONE", "LAUNCH_FAILED",
     "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED", "REVOKED", "TIMEOUT")
)  # fmt: skip
#: Ends that say nothing against the job: it may be submitted again.
TRANSIENT = frozenset(("BOOT_FAIL", "NODE_FAIL", "PREEMPTED", "TIMEOUT"))


@dataclasses.dataclass(frozen=True)
class Status:
    """A job's state (Slurm's word; GONE: nobody knows the job any more) and what else was said.

    `details`: the fields of `scontrol show job` (StartTime, NodeList, …) or of `sacct`, by name.
    """

    state: str
    reason: str = ""
    details: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def alive(self) -> bool:
        """True while the job waits or runs."""
        return self.state not in ENDED


def ask(job_id: str) -> Status | None:
    """Return how the job is, or None if the controller does not answer now."""
    answer = call("scontrol", "--oneliner", "show", "job", job_id)
    if answer is None:
        return None
    if answer.returncode != 0:
        if "Invalid job id" not in answer.stderr:
            return None
        known = _from_database(job_id)
        # The database was never told the end of a job that it alone calls alive.
        return known if known and not known.alive else Status("GONE")
    # Values may hold spaces, names never do.
    found = dict(re.findall(r"(\w+)=(.*?)(?= \w+[:/\w]*=|\s*$)", answer.stdout.strip()))
    return Status(found.get("JobState", "GONE"), found.get("Reason", ""), found)


def _from_database(job_id: str) -> Status | None:
    # Fields that every version has: for one that it does not know sacct tells nothing at all.
    names = ["State", "Start", "End", "Submit", "NodeList", "ExitCode", "JobName"]
    answer = call("sacct", "-X", "-n", "-P", "-j", job_id, "-o", ",".join(names))
    if answer is None or answer.returncode != 0 or not answer.stdout.strip():
        return None
    values = dict(zip(names, answer.stdout.splitlines()[-1].split("|"), strict=False))
    # "CANCELLED by 1000" is a state of one word and a reason.
    state, _, rest = values.pop("State").partition(" ")
    for name in ("Start", "End", "Submit"):
        values[f"{name}Time"] = values.pop(name, "")
    return Status(state.rstrip("+"), rest, values)


def find(name: str) -> str | None:
    """Return the id of this user's newest job of that name, ended ones too; "" if there is none.

    None if the controller does not answer now.
    """
    answer = call("squeue", "--me", "--states=all", "--noheader", "--format=%i", f"--name={name}")
    if answer is None or answer.returncode != 0:
        return None
    return max(answer.stdout.split(), key=int, default="")


def call(*command: str, timeout: float = 60) -> subprocess.CompletedProcess[str] | None:
    """Run a command of Slurm's; None if it is not there or does not end."""
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=timeout)
    except (OSError, subprocess.TimeoutExpired):
        return None


class Watch:
    """One job's status, asked for seldom: every 2 s at first, every 30 s after half an hour."""

    def __init__(self, job_id: str) -> None:
        self.job_id = job_id
        self.status = Status("UNKNOWN")
        self._start = time.monotonic()
        self._asked = -1e9

    def look(self, *, now: bool = False) -> Status:
        """Return the last known status, asked anew if it is old (or `now`)."""
        clock = time.monotonic()
        if now or clock - self._asked >= min(30.0, max(2.0, (clock - self._start) / 60)):
            answer = ask(self.job_id)
            # Counted from the answer: a busy controller takes its time.
            self._asked = time.monotonic()
            self.status = answer or self.status
        return self.status
