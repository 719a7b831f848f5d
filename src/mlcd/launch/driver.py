"""The driver of a gang: submits it or finds it again, watches, and says why it ended.

The driver shows rank 0's log, ends all ranks as soon as one fails, and ends them when it is
interrupted. The gang outlives a killed driver: it is recorded before it is submitted, and the next
driver waits for the live job, or takes the result of a finished one, instead of starting a second
writer. A rank whose folder is no longer the recorded one ends itself.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlcd.launch.accounting import append_record
from mlcd.launch.backend import Backend, recorded_job
from mlcd.launch.call import Call
from mlcd.launch.diagnosis import failure_message, timed_out
from mlcd.launch.environment import Tail, Terminated, interruptible
from mlcd.launch.failures import GangFailed, Transient
from mlcd.launch.gang_files import RANK_LOG, Record
from mlcd.launch.jobs import Job
from mlcd.launch.options import Resources
from mlcd.launch.snakemake import SnakemakeProcess
from mlcd.launch.stragglers import Stragglers
from mlcd.utils.errors import UserError
from mlcd.utils.files import sha256_json
from mlcd.utils.logging import LOGGER

#: Seconds that a rank may do nothing after the first of them has finished, and that a job may take
#: to end after the last has.
_GRACE = 120.0
#: Failures in a row by time-outs of collectives after which a gang is not started again.
_TIMEOUTS = 3
#: Seconds in which the ranks may save when the driver is interrupted.
_SAVE = 300.0


class Driver:
    """Runs `call` as a gang whose record lies in the folder `home`.

    `work` names what is to be made; `progress` returns a value that changes when the work has saved
    something. `backends`: one for each launcher, by name.
    """

    def __init__(
        self,
        call: Call,
        home: Path,
        resources: Resources,
        backends: dict[str, Backend[Any]],
        work: str | None = None,
        progress: Callable[[], Any] = lambda: None,
    ) -> None:
        self.call = call
        self.home = home.resolve()
        self.resources = resources
        self.backends = backends
        self.work = work or sha256_json([call.stage, call.kwargs])
        self.progress = progress
        self.resubmitted = 0
        self._failures = 0
        self._saved: Any = None

    def run(self) -> Any:
        """Return rank 0's result. Raises :class:`UserError`."""
        self.home.mkdir(parents=True, exist_ok=True)
        self._saved = self.progress()
        with interruptible():
            job = self._start(lambda: self._attach() or self._submit())
            while True:
                try:
                    result = self._watch(job)
                except (Transient, GangFailed) as reason:
                    job = self._start_again(job, reason)
                    continue
                except _SnakemakeGone:
                    # The job is left to the next Snakemake, which may be there already.
                    raise UserError(
                        f"the Snakemake process is gone; {job.describe()} continues, start again "
                        "to wait for it"
                    ) from None
                except Terminated:
                    if job.outlives_shutdown:
                        LOGGER.info("ended; %s continues", job.describe())
                    else:
                        job.end()
                    raise
                except BaseException as error:
                    if isinstance(error, KeyboardInterrupt):
                        _let_save(job)
                    job.end()
                    self._account(job)
                    raise
                self._account(job)
                return result

    def _start(self, begin: Callable[[], Job]) -> Job:
        """Return the job of `begin`; end it if this process is interrupted meanwhile."""
        try:
            return begin()
        except KeyboardInterrupt as interrupt:
            # The job may have been taken in that very moment.
            if not isinstance(interrupt, Terminated) and (left := self._attach(wait=False)):
                left.end()
            raise

    def _submit(self) -> Job:
        """Start a gang in a fresh folder and record it."""
        launcher = self.resources.launcher
        record = Record.new(self.home, launcher, self.call.stage, self.resources.ranks, self.work)
        record.resubmitted = self.resubmitted
        Path(record.folder).mkdir()
        # Before the job exists: a driver killed in between leaves a name to look for. From here on
        # no rank of an earlier gang publishes anything.
        record.write(self.home)
        for old in self.home.glob("job-*"):
            if old.name != record.token:
                shutil.rmtree(old, ignore_errors=True)
        self.backends[launcher].submit(self.call, record)
        record.write(self.home)
        LOGGER.info("%d ranks are %s job %s", record.ranks, launcher, record.job_id)
        job: Job = self.backends[launcher].job(record)
        return job

    def _start_again(self, job: Job, reason: Transient | GangFailed) -> Job:
        """Submit again what ended for that reason. Raises it, or :class:`UserError`, at a limit."""
        if isinstance(reason, GangFailed):
            job.end()
            self._account(job)
            self._count_failure(reason, job)
            LOGGER.warning("%s", reason)
            LOGGER.warning("starting again from the newest checkpoint")
            return self._start(self._submit)
        self._account(job)
        if self.resubmitted >= self.resources.requeues:
            raise UserError(
                f"{reason}, for the {self.resources.requeues + 1}. time; what is done is kept. "
                "Raise --requeues (in a profile: resource requeues) or the time limit, and start "
                "again"
            )
        LOGGER.warning("%s; submitting it again", reason)
        self.resubmitted += 1
        return self._start(self._submit)

    def _count_failure(self, failure: GangFailed, job: Job) -> None:
        """Raise `failure` if it is the last of too many in a row without progress in between.

        A collective that timed out is a fault of the network or of a disk, mostly: it is tried
        again where other failures are not.
        """
        most = self.resources.max_failures
        if timed_out(job):
            most = max(most, _TIMEOUTS)
        saved = self.progress()
        self._failures = self._failures + 1 if saved == self._saved else 0
        self._saved = saved
        if not failure.restartable or self._failures >= most:
            raise failure

    def _attach(self, *, wait: bool = True) -> Job | None:
        """Return the recorded job if it is alive, or if it has finished this very work.

        `wait` as long as it takes to know whether a gang on another machine is alive. Raises
        :class:`UserError` if a live job makes something else.
        """
        if (found := recorded_job(self.home, self.backends)) is None:
            return None
        record, job = found
        same = record.work == self.work
        if self.backends[record.launcher].is_alive(record, job, self.home, wait=wait):
            if same:
                self.resubmitted = record.resubmitted
                LOGGER.info("%s of an earlier call is alive: waiting for it", job.describe())
                return job
            if not wait:
                return None
            self._end_other(job)
        elif same and len(job.done()) == job.ranks:
            LOGGER.info("%s of an earlier call has finished: taking its result", job.describe())
            return job
        # Its driver was killed, and nobody else writes down what it took.
        self._account(job)
        return None

    def _end_other(self, job: Job) -> None:
        """End a live job of other work, if that was asked for. Raises :class:`UserError` if not."""
        who = f"{self.home}: {job.describe()}, started with another config or code, still writes"
        if not self.resources.end_other or not job.can_be_ended():
            option = ", or give --end-other" if job.can_be_ended() else ""
            raise UserError(f"{who}; wait for it, end it by `{job.how_to_end()}`{option}")
        LOGGER.warning("%s; ending it", who)
        job.end()
        if job.alive():
            raise UserError(f"{who} and does not end; end it by `{job.how_to_end()}`")

    def _account(self, job: Job) -> None:
        append_record(self.resources.record, self.call.stage, job)

    def _watch(self, job: Job) -> Any:
        """Wait for the gang's end; return its result.

        Raises :class:`GangFailed`, :class:`Transient` or :class:`_SnakemakeGone`.
        """
        log = Tail(job.folder / RANK_LOG)
        snakemake = SnakemakeProcess.of_this_process()
        stragglers = Stragglers(_GRACE)
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
            job.check(alive=alive)
            stuck = stragglers.stuck(job.files, job.ranks, done)
            if stuck is not None:
                raise GangFailed(failure_message(job, {"rank": stuck, "kind": "stuck"}))
            if snakemake.is_gone():
                raise _SnakemakeGone
            time.sleep(job.poll)


def _let_save(job: Job) -> None:
    """Ask the ranks to save and end, and wait until they have, or until a second interrupt."""
    if not job.can_save():
        return
    try:
        job.ask_to_save()
        LOGGER.info("interrupted: the ranks save what they have; interrupt again to end at once")
        job.wait_end(_SAVE)
    except (KeyboardInterrupt, OSError):
        LOGGER.info("ending the ranks at once")


class _SnakemakeGone(Exception):
    """The Snakemake that started this driver was killed."""
