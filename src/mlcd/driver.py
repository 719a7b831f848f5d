"""The driver of a gang: submits it or finds it again, watches, and says why it ended.

The driver shows rank 0's log, ends all ranks as soon as one fails, and ends them when it is
interrupted. The gang outlives a killed driver: it is recorded in the state folder before it is
submitted, and the next driver waits for the live job, or takes the result of a finished one,
instead of starting a second writer. A rank whose folder is no more the recorded one ends itself.
"""

from __future__ import annotations

import json
import shutil
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlcd import notice, patience, slurm
from mlcd.errors import UserError
from mlcd.files import sha256_json, write_json
from mlcd.gang import RANK_LOG, RECORD, Task
from mlcd.head import Head
from mlcd.jobs import Job, LocalJob, SlurmJob
from mlcd.progress import LOGGER
from mlcd.record import append_record
from mlcd.story import local_story, slurm_story
from mlcd.surroundings import Tail, Terminated, environment, interruptible, stderr_to

if TYPE_CHECKING:
    from mlcd.launch import Resources

#: Seconds that ranks may take to end after the first of them has finished, or failed.
_GRACE, _SETTLE = 120.0, 30.0
#: Seconds after which a file written on another machine is seen at the latest.
_LATE = 90.0
#: Seconds in which Slurm starts a job again that has lost a node: it calls a silent node down after
#: SlurmdTimeout, 300 by default.
_NODE_DOWN = 360.0


class Driver:
    """Runs `function(**kwargs)` as a gang whose records lie in `home`."""

    def __init__(
        self, function: Callable[..., Any], kwargs: dict[str, Any], home: Path, resources: Resources
    ) -> None:
        self.function = function
        self.kwargs = kwargs
        self.home = home.resolve()
        self.resources = resources
        self.stage = function.__module__.removeprefix("mlcd.").split(".")[0]
        self.work = sha256_json([function.__module__, function.__qualname__, kwargs])
        self.resubmitted = 0

    def run(self) -> Any:
        """Return rank 0's result. Raises :class:`UserError`."""
        self.home.mkdir(parents=True, exist_ok=True)
        with interruptible():
            job = self._start(lambda: self._attach() or self._submit())
            while True:
                try:
                    result = self._watch(job)
                except _Again as reason:
                    append_record(self.resources.record, self.stage, job)
                    if self.resubmitted >= self.resources.requeues:
                        raise UserError(_too_often(self.resources.requeues, reason)) from None
                    LOGGER.warning("%s; submitting it again", reason)
                    self.resubmitted += 1
                    job = self._start(self._submit)
                    continue
                except _HeadGone:
                    # The job is left to the next head, which may be there already.
                    raise UserError(
                        f"snakemake is gone; job {job.job_id} goes on, start again to wait for it"
                    ) from None
                except Terminated:
                    if isinstance(job, SlurmJob):
                        LOGGER.info("ended; job %s goes on", job.job_id)
                    else:
                        job.end()
                    raise
                except BaseException:
                    job.end()
                    append_record(self.resources.record, self.stage, job)
                    raise
                append_record(self.resources.record, self.stage, job)
                return result

    def _start(self, begin: Callable[[], Job]) -> Job:
        """Return the job of `begin`; end it if this process is interrupted meanwhile."""
        try:
            return begin()
        except KeyboardInterrupt as interrupt:
            # The job may have been taken in that very moment.
            if not isinstance(interrupt, Terminated) and (left := self._attach(sure=False)):
                left.end()
            raise

    def _submit(self) -> Job:
        """Start a gang in a fresh folder and record it."""
        for old in self.home.glob("job-*"):
            shutil.rmtree(old, ignore_errors=True)
        name = f"job-{uuid.uuid4().hex[:12]}"
        folder = self.home / name
        folder.mkdir()
        record = {
            "launcher": self.resources.launcher,
            "folder": str(folder),
            "name": f"mlcd-{self.stage}-{name[4:]}",
            "ranks": self.resources.ranks,
            "work": self.work,
            "job_id": None,
            "resubmitted": self.resubmitted,
            "submitted": time.time(),
        }
        # Before the job exists: a driver killed in between leaves a name to look for.
        write_json(self.home / RECORD, record)
        executor = self._executor(folder, record["name"])
        task = Task(
            self.function, self.kwargs, folder, local=self.resources.launcher == "local",
            requeues=self.resources.requeues, patience=self.resources.warning_s * 0.7,
        )  # fmt: skip

        def send() -> str:
            with environment(self.resources), stderr_to(folder / "controller.log"):
                return executor.submit(task).job_id

        if self.resources.launcher == "slurm":
            job_id = patience.submit(send, record["name"])
        else:
            job_id = send()
            record["where"] = LocalJob.started(job_id)
        record["job_id"] = job_id
        write_json(self.home / RECORD, record)
        LOGGER.info("%d ranks are %s job %s", record["ranks"], record["launcher"], job_id)
        return self._job(record)

    def _executor(self, folder: Path, name: str) -> Any:
        import submitit

        resources = self.resources
        common = {"nodes": resources.nodes, "tasks_per_node": resources.ranks_per_node}
        if resources.launcher == "local":
            executor = submitit.AutoExecutor(folder=folder, cluster="local")
            executor.update_parameters(
                **common,
                gpus_per_node=resources.ranks_per_node if resources.gpus else 0,
                timeout_min=10 * 365 * 24 * 60,
                stderr_to_stdout=True,
            )
            return executor
        if shutil.which("sbatch") is None:
            raise UserError("--launcher slurm: there is no sbatch on this machine; use local")
        options = dict(resources.options)
        if resources.gpus and not options.keys() & {"gres", "gpus_per_node", "gpus_per_task"}:
            options["gpus_per_node"] = resources.ranks_per_node
        if resources.mem_mb:
            options.setdefault("mem", f"{resources.mem_mb}M")
        for key in ("partition", "account"):
            if value := getattr(resources, key):
                options.setdefault(key, value)
        executor = submitit.AutoExecutor(
            folder=folder, cluster="slurm", slurm_python=notice.python()
        )
        executor.update_parameters(
            **common,
            name=name,
            cpus_per_task=resources.threads,
            timeout_min=resources.timeout_min,
            stderr_to_stdout=True,
            slurm_signal_delay_s=resources.warning_s,
            # One failed rank ends the job at once, whether or not a driver watches.
            slurm_srun_args=["--kill-on-bad-exit=1"],
            slurm_additional_parameters={
                "requeue": True,
                **{key.replace("_", "-"): value for key, value in options.items()},
            },
        )
        return executor

    def _attach(self, *, sure: bool = True) -> Job | None:
        """Return the recorded job if it is alive, or if it has finished this very work.

        Unless `sure`, a gang on another machine counts as alive before it has shown life.
        """
        try:
            record = json.loads((self.home / RECORD).read_text())
            if record["job_id"] is None:
                record["job_id"] = self._find_orphan(record)
                if not record["job_id"]:
                    return None
                if record["launcher"] == "local":
                    record["where"] = LocalJob.started(record["job_id"])
                write_json(self.home / RECORD, record)
            job = self._job(record)
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
        if isinstance(job, SlurmJob):
            status = patience.wait_for_word(job.watch, self.home / RECORD)
            # Numbers come again, in a new cluster of the same place say; names do not.
            alive = job.alive() and status.details.get("JobName", record["name"]) == record["name"]
        else:
            alive = job.shows_life() if sure else job.alive()
        self.resubmitted = record["resubmitted"]
        if alive:
            LOGGER.info("job %s of an earlier call is alive: waiting for it", job.job_id)
            return job
        if record["work"] == self.work and len(job.done()) == job.ranks:
            LOGGER.info("job %s of an earlier call has finished: taking its result", job.job_id)
            return job
        self.resubmitted = 0
        return None

    def _find_orphan(self, record: dict[str, Any]) -> str:
        """Return the id of a job that was started just before its driver was killed, or ""."""
        if record["launcher"] == "local":
            return LocalJob.find(Path(record["folder"]))
        return patience.find(record["name"], self.home / RECORD)

    def _job(self, record: dict[str, Any]) -> Job:
        place = record["job_id"], Path(record["folder"]), record["ranks"]
        if record["launcher"] == "local":
            return LocalJob(*place, record["where"])
        return SlurmJob(*place)

    def _watch(self, job: Job) -> Any:
        """Wait for the gang's end; return its result or raise :class:`UserError` or _Again."""
        log = Tail(job.folder / RANK_LOG)
        look = _look_slurm if isinstance(job, SlurmJob) else _look_local
        head = Head.of_this_process()
        first_done: float | None = None
        while True:
            # Asked before the files are read: a rank writes its files before it ends.
            alive = job.alive()
            done = job.done()
            log.show()
            if len(done) == job.ranks:
                # Before the wait: Slurm may start a job again that is at its end.
                result = job.result()
                job.wait_end(_GRACE)
                return result
            look(job, alive)
            if done:
                first_done = first_done or time.monotonic()
                if time.monotonic() - first_done > _GRACE:
                    missing = next(rank for rank in range(job.ranks) if rank not in done)
                    raise UserError(local_story(job, {"rank": missing, "kind": "stuck"}))
            else:
                first_done = None
            if head.is_gone():
                raise _HeadGone
            time.sleep(job.poll)


class _Again(Exception):
    """The job has ended through no fault of the work's, and may be submitted again."""


class _HeadGone(Exception):
    """The Snakemake that started this driver was killed."""


def _look_local(job: LocalJob, alive: bool) -> None:
    """Raise :class:`UserError` if a rank of a local gang has failed or is missing."""
    failure, dead = job.failure(), job.dead_ranks()
    if dead and (alive or failure):
        # Before the failures of the others, which lost their peer.
        raise UserError(local_story(job, {"rank": dead[0], "kind": "killed"}))
    if failure:
        raise UserError(local_story(job, failure))
    if not alive:
        missing = min(set(range(job.ranks)) - set(job.done()))
        raise UserError(local_story(job, {"rank": missing, "kind": "ended"}))


def _look_slurm(job: SlurmJob, alive: bool) -> None:
    """Raise :class:`UserError` or :class:`_Again` if a Slurm gang has ended without a result.

    A failed rank is not yet the end: srun ends the others within seconds, and if a node was lost
    Slurm starts the job again by itself. Its own account of the end comes first.
    """
    if alive and (failure := job.failure()):
        _settle(job, failure)
        alive = job.alive()
    if alive:
        _tell_queue(job)
        return
    status = job.watch.status
    # Files of a rank on another machine may show late.
    late = status.state in ("COMPLETED", "FAILED")
    end = time.monotonic() + (_LATE if late else 2 * job.poll)
    while time.monotonic() < end:
        if len(job.done()) == job.ranks:
            return
        if status.state == "FAILED" and (job.failure() or job.was_killed()):
            break
        time.sleep(job.poll)
    failure = job.failure()
    if status.state in slurm.PASSING and (failure is None or failure["kind"] in ("lost", "error")):
        raise _Again(f"Slurm job {job.job_id} ended with {status.state}")
    raise UserError(slurm_story(job, status, failure))


def _settle(job: SlurmJob, failure: dict[str, Any]) -> None:
    """Wait until the job has ended, or runs again, after one of its ranks failed; then end it."""
    files, start = job.files, time.monotonic()
    if job.settled == files:
        return
    job.settled = files
    limit = _NODE_DOWN if failure["kind"] == "lost" else _SETTLE
    while job.watch.look(now=time.monotonic() - start < _SETTLE).alive and job.files == files:
        if job.watch.status.state == "PENDING":
            return
        if time.monotonic() - start > limit:
            job.end()
            # For the story: nobody else has cancelled it.
            job.ended_here = True
            return
        time.sleep(1)


def _tell_queue(job: SlurmJob) -> None:
    """Say once why the job waits."""
    status = job.watch.status
    waits = status.state == "PENDING" and status.reason not in ("", "None")
    word = status.reason if waits else ""
    if word != job.told:
        job.told = word
        if "held" in word.lower():
            LOGGER.warning(
                "Slurm job %s is held (%s); let it go by: scontrol release %s",
                job.job_id, word, job.job_id,
            )  # fmt: skip
        elif word:
            LOGGER.info("Slurm job %s waits in the queue (%s)", job.job_id, word)


def _too_often(requeues: int, reason: Exception) -> str:
    return (
        f"{reason}, for the {requeues + 1}. time; what is done is kept. Raise --requeues "
        "(in a profile: resource requeues) or the time limit, and start again"
    )
