"""Gangs as Slurm jobs: one job with all ranks, submitted by submitit."""

from __future__ import annotations

import os
import shutil
import time
import zlib
from pathlib import Path
from typing import Any

from mlcd.launch import preemption
from mlcd.launch.backend import Backend
from mlcd.launch.call import Call
from mlcd.launch.diagnosis_slurm import End, end_message, killed_rank, ran_out_of_memory
from mlcd.launch.environment import rank_environment, stderr_to
from mlcd.launch.failures import GangFailed, Transient
from mlcd.launch.gang_files import RECORD, Record, log_of
from mlcd.launch.jobs import Job
from mlcd.launch.rank import Rank
from mlcd.slurm import client, submit
from mlcd.utils.errors import UserError
from mlcd.utils.logging import LOGGER

#: Share of the warning before the time limit in which the work may save; then it is requeued.
_SAVE_SHARE = 0.7
#: Seconds that a job may take to end after a rank has failed.
_SETTLE = 30.0
#: Seconds after which a file written on another machine is seen at the latest.
_LATE = 90.0
#: Seconds in which Slurm starts a job again that has lost a node: it calls a silent node down after
#: SlurmdTimeout, 300 by default.
_NODE_DOWN = 360.0


class SlurmBackend(Backend["SlurmJob"]):
    """The launcher ``slurm``."""

    def submit(self, call: Call, record: Record) -> None:
        folder = Path(record.folder)
        executor = self._executor(folder, record.name, call.stage)
        resources = self.resources
        rank = SlurmRank(call, folder, resources.requeues, resources.warning_s * _SAVE_SHARE)

        def send() -> str:
            with rank_environment(resources, {}), stderr_to(folder / "controller.log"):
                return str(executor.submit(rank).job_id)

        record.job_id = submit.submit(send, record.name)

    def find_orphan(self, record: Record, home: Path) -> bool:
        record.job_id = submit.find(record.name, home / RECORD) or None
        return record.job_id is not None

    def job(self, record: Record) -> SlurmJob:
        return SlurmJob(str(record.job_id), Path(record.folder), record.ranks)

    def is_alive(self, record: Record, job: SlurmJob, home: Path, *, wait: bool) -> bool:
        status = submit.wait_for_answer(job.watch, home / RECORD)
        # Numbers come again, in a new cluster of the same place say; names do not.
        return job.alive() and status.details.get("JobName", record.name) == record.name

    def _executor(self, folder: Path, name: str, stage: str) -> Any:
        import submitit

        if shutil.which("sbatch") is None:
            raise UserError("--launcher slurm: there is no sbatch on this machine; use local")
        resources = self.resources
        options = dict(resources.options)
        if resources.gpus and not options.keys() & {"gres", "gpus_per_node", "gpus_per_task"}:
            options["gpus_per_node"] = resources.ranks_per_node
        if resources.mem_mb:
            options.setdefault("mem", f"{resources.mem_mb}M")
        for key in ("partition", "account"):
            if value := getattr(resources, key):
                options.setdefault(key, value)
        executor = submitit.AutoExecutor(
            folder=folder, cluster="slurm", slurm_python=preemption.python()
        )
        executor.update_parameters(
            nodes=resources.nodes,
            tasks_per_node=resources.ranks_per_node,
            name=name,
            cpus_per_task=resources.threads,
            timeout_min=resources.timeout_min,
            stderr_to_stdout=True,
            slurm_signal_delay_s=resources.warning_s,
            slurm_srun_args=[
                # One failed rank ends the job at once, whether or not a driver watches.
                "--kill-on-bad-exit=1",
                # Rank 0 writes the final files when the others have ended; a site's WaitTime would
                # end it.
                "--wait=0",
                # Slurm 22.05 to 23.02 does not take it over from sbatch: one core a rank.
                f"--cpus-per-task={resources.threads}",
            ],
            slurm_additional_parameters={
                "requeue": True,
                # For those who look at the queue.
                "comment": f"mlcd {stage}: {folder.parent}",
                **{key.replace("_", "-"): value for key, value in options.items()},
            },
        )
        return executor


class SlurmRank(Rank):
    """A rank of a Slurm job, which goes back into the queue at its time limit and at preemption.

    `requeues`: how often at most; `grace`: seconds in which the work may save before that.
    """

    def __init__(self, call: Call, folder: Path, requeues: int, grace: float) -> None:
        super().__init__(call, folder)
        self.requeues = requeues
        self.grace = grace

    def take_place(self) -> int:
        import submitit

        place = submitit.helpers.TorchDistributedEnvironment()
        place.export(set_cuda_visible_devices=False, overwrite=True)
        os.environ["MASTER_PORT"] = str(meeting_port())
        return place.rank

    def start_number(self) -> int:
        return int(os.environ.get("SLURM_RESTART_COUNT", "0"))

    def log_size(self) -> int:
        log = log_of(self.folder, os.environ.get("SLURM_JOB_ID", ""), 0)
        return log.stat().st_size if log.exists() else 0

    def begin(self) -> None:
        if self.number > self.requeues:
            self.fail({"kind": "requeues"})
        preemption.listen(self._requeue, self.grace)

    def finish(self) -> None:
        preemption.over()

    def _requeue(self) -> None:
        """Put this job back into the queue; Slurm then ends all ranks. Rank 0 does."""
        if self.rank != 0:
            return
        if self.number >= self.requeues:
            self.fail({"kind": "requeues"})
        LOGGER.info("told to stop: the job goes back into the queue")
        command = ("scontrol", "requeue", os.environ["SLURM_JOB_ID"])
        # A controller that is away comes back, or the time limit ends this process.
        while (answer := client.call(*command, timeout=120)) is None or answer.returncode != 0:
            time.sleep(2)


class SlurmJob(Job):
    """One Slurm job with all ranks."""

    launcher = "slurm"
    poll = 1.0  # the files lie on a network disk
    outlives_shutdown = True

    def __init__(self, job_id: str, folder: Path, ranks: int) -> None:
        super().__init__(job_id, folder, ranks)
        self.watch = client.Watch(job_id)
        #: True if the driver has ended it.
        self.ended_here = False
        self._told = ""
        #: The start whose failure has been waited out.
        self._settled: Path | None = None

    def describe(self) -> str:
        return f"Slurm job {self.job_id}"

    def how_to_end(self) -> str:
        return f"scancel {self.job_id}"

    def alive(self) -> bool:
        return self.watch.look().alive

    def can_save(self) -> bool:
        return self.watch.status.state == "RUNNING" and super().can_save()

    def status(self) -> client.Status:
        return self.watch.look(now=True)

    def check(self, *, alive: bool) -> None:
        # A failed rank is not yet the end: srun ends the others within seconds, and if a node was
        # lost Slurm starts the job again by itself. Its own account of the end comes first.
        if alive and (failure := self.failure()):
            self._settle(failure)
            alive = self.alive()
        if alive:
            self._tell_queue()
            return
        status = self.watch.status
        # Files of a rank on another machine may show late.
        late = status.state in ("COMPLETED", "FAILED")
        end = time.monotonic() + (_LATE if late else 2 * self.poll)
        while time.monotonic() < end:
            if len(self.done()) == self.ranks:
                return
            if status.state == "FAILED" and (self.failure() or self.was_killed()):
                break
            time.sleep(self.poll)
        failure = self.failure()
        if status.state in client.TRANSIENT and (
            failure is None or failure["kind"] in ("lost", "error")
        ):
            raise Transient(f"Slurm job {self.job_id} ended with {status.state}")
        end_of_job = self.explain(failure)
        raise GangFailed(end_message(self, end_of_job), restartable=end_of_job.restartable)

    def explain(self, failure: dict[str, Any] | None) -> End:
        """Return what is known of the end of this job, whose first `failure` was this."""
        return End(
            status=self.watch.status,
            failure=failure,
            killed=killed_rank(self.said(), self._silent_ranks()),
            out_of_memory=self._ran_out_of_memory(),
            canceled_here=self.ended_here,
        )

    def end(self) -> None:
        end = time.monotonic() + 60
        while self.watch.look(now=True).alive and time.monotonic() < end:
            answer = client.call("scancel", self.job_id)
            if answer is not None and answer.returncode == 0:
                break
            time.sleep(2)  # the controller is away
        self.watch.look(now=True)
        self.wait_end(60)

    def was_killed(self) -> bool:
        """True if a rank is known to have been ended from outside: it leaves no word."""
        return self._ran_out_of_memory() or bool(killed_rank(self.said(), self._silent_ranks()))

    def _silent_ranks(self) -> list[int]:
        """Return the ranks that left neither a result nor a word."""
        files = self.files
        words = ("done", "left")
        return [
            rank
            for rank in range(self.ranks)
            if not any((files / f"rank-{rank}.{word}").exists() for word in words)
        ]

    def _ran_out_of_memory(self) -> bool:
        return self.watch.status.state == "OUT_OF_MEMORY" or ran_out_of_memory(self.said())

    def said(self) -> str:
        """Return what Slurm and rank 0 wrote since the newest start of the job."""
        sizes = [place["log_size"] for place in self.places().values()]
        return self.output(0, since=min(sizes, default=0))

    def _settle(self, failure: dict[str, Any]) -> None:
        """Wait until the job has ended, or runs again, after a rank has failed; then end it."""
        files, start = self.files, time.monotonic()
        if self._settled == files:
            return
        self._settled = files
        limit = _NODE_DOWN if failure["kind"] == "lost" else _SETTLE
        while self.watch.look(now=time.monotonic() - start < _SETTLE).alive and self.files == files:
            if self.watch.status.state == "PENDING":
                return
            if time.monotonic() - start > limit:
                self.end()
                # For the message: nobody else has canceled it.
                self.ended_here = True
                return
            time.sleep(1)

    def _tell_queue(self) -> None:
        """Say once why the job waits."""
        status = self.watch.status
        waits = status.state == "PENDING" and status.reason not in ("", "None")
        reason = status.reason if waits else ""
        if reason == self._told:
            return
        self._told = reason
        if "held" in reason.lower():
            LOGGER.warning(
                "Slurm job %s is held (%s); release it by: scontrol release %s",
                self.job_id, reason, self.job_id,
            )  # fmt: skip
        elif reason:
            LOGGER.info("Slurm job %s waits in the queue (%s)", self.job_id, reason)


def meeting_port() -> int:
    """Return the port at which the ranks of this start of the Slurm job meet.

    Equal on all ranks. Below 32768, where systems begin to give ports to outgoing connections:
    submitit's own choice may be one of those, and then rank 0 cannot listen.
    """
    start = f"{os.environ['SLURM_JOB_ID']}.{os.environ.get('SLURM_RESTART_COUNT', '0')}"
    return 20_000 + zlib.crc32(start.encode()) % 12_000
