"""Why a gang ended, for the user: which rank failed first, what it said, what the launcher said."""

from __future__ import annotations

import json
from typing import Any

from mlcd.jobs import Job, SlurmJob
from mlcd.slurm import Status

_LINES = 20


def local_story(job: Job, failure: dict[str, Any]) -> str:
    """Return the message for a failure of a rank of which no more is known."""
    if failure["kind"] == "user":
        return failure["message"]
    what = {
        "error": f"failed: {failure.get('message', '')}",
        "lost": f"lost another rank: {failure.get('message', '')}",
        "killed": "was killed from outside (out of memory?)",
        "ended": "ended without a word: its job was ended from outside",
        "stuck": "did not end after the others had finished",
    }[failure["kind"]]
    return _with_lines(job, failure["rank"], f"{what}; the other ranks were ended.")


def slurm_story(job: SlurmJob, status: Status, failure: dict[str, Any] | None) -> str:
    """Return the message for the end of a Slurm job: Slurm's reason first where it has one."""
    ended = f"Slurm job {job.job_id}"
    dead = job.first_dead()
    if failure and failure["kind"] == "user":
        return failure["message"]
    if failure and failure["kind"] == "requeues":
        return (
            f"{ended} was stopped and started again as often as --requeues allows; what is done is "
            "kept. Raise --requeues (in a profile: resource requeues) or the time limit, and start "
            "again"
        )
    if job.ran_out_of_memory():
        rank = max(range(job.ranks), key=lambda rank: _memory(job, rank))
        text = (
            f"{ended} ran out of memory (Slurm: {status.state}); raise --mem-mb (resource mem_mb)."
        )
        return _with_lines(job, rank, text, own_words=False)
    if status.state == "CANCELLED" and not job.ended_here:
        text = f"{ended} was cancelled{_by(status)}; start again to go on from its checkpoint."
        return _with_lines(job, _guilty(job, failure), text, own_words=False)
    if dead and (failure is None or failure["kind"] == "lost"):
        where = job.places().get(dead[0], {}).get("node", "")
        what = f"was killed from outside{f' on {where}' if where else ''} ({dead[1]})"
        return _with_lines(job, dead[0], f"{what}; the other ranks were ended. {ended}.")
    if failure:
        kind = "failed" if failure["kind"] == "error" else "lost another rank"
        text = f"{kind}: {failure['message']}; the other ranks were ended. {ended}."
        return _with_lines(job, failure["rank"], text)
    reason = "" if status.reason in ("", "None") else f", {status.reason}"
    text = f"{ended} ended without a result (Slurm: {status.state}{reason})."
    return _with_lines(job, _guilty(job, failure), text, own_words=False)


def _guilty(job: Job, failure: dict[str, Any] | None) -> int:
    """Return the rank whose last lines tell most: the one that failed, or one that fell silent."""
    if failure:
        return failure["rank"]
    return min(set(range(job.ranks)) - set(job.done()), default=0)


def _memory(job: Job, rank: int) -> int:
    """Return the last known memory of a rank in MB."""
    try:
        return json.loads((job.files / f"rank-{rank}.usage.json").read_text())["max_rss_mb"]
    except (OSError, ValueError):
        return 0


def _by(status: Status) -> str:
    return f" ({status.reason})" if status.reason not in ("", "None") else " (scancel)"


def _with_lines(job: Job, rank: int, text: str, *, own_words: bool = True) -> str:
    lines = [line for line in job.output(rank).splitlines() if line.strip()][-_LINES:]
    tail = "".join(f"\n  | {line}" for line in lines)
    if own_words:
        return f"rank {rank} of {job.ranks} {text} Its last lines:{tail}"
    return f"{text} Last lines of rank {rank} of {job.ranks}:{tail}"
