"""One rank in the driver's own process: no other process, no log of its own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from mlcd.launch.backend import Backend, check_gpus
from mlcd.launch.call import Call
from mlcd.launch.diagnosis import failure_message
from mlcd.launch.failures import GangFailed
from mlcd.launch.gang_files import Record, free_port, try_folder
from mlcd.launch.jobs import Job
from mlcd.utils import fencing
from mlcd.utils.errors import UserError
from mlcd.utils.files import write_json
from mlcd.utils.processes import this_process


class InlineBackend(Backend["InlineJob"]):
    """The launcher ``inline``: to submit is to do the work."""

    def check(self) -> None:
        if self.resources.gpus:
            check_gpus(1)

    def submit(self, call: Call, record: Record) -> None:
        files = try_folder(Path(record.folder), 0)
        files.mkdir()
        home = Path(record.folder).parent
        record.job_id, record.place = str(os.getpid()), this_process()

        def require_right() -> None:
            newest = Record.read(home)
            if newest is not None and newest.token != record.token:
                raise UserError(f"{home}: another job has taken over; this one publishes no more")

        with alone(self.resources.threads), fencing.fenced(require_right):
            result = call.function(**call.kwargs)
        write_json(files / "rank-0.done", {"result": result})

    def find_orphan(self, record: Record, home: Path) -> bool:
        # It ended with its driver.
        return False

    def job(self, record: Record) -> InlineJob:
        return InlineJob(str(record.job_id), Path(record.folder), record.ranks)

    def is_alive(self, record: Record, job: InlineJob, home: Path, *, wait: bool) -> bool:
        return False


class InlineJob(Job):
    """Work that has been done when :meth:`InlineBackend.submit` returns."""

    launcher = "inline"
    has_accounts = False

    def describe(self) -> str:
        return f"process {self.job_id}"

    def how_to_end(self) -> str:
        return f"kill {self.job_id}"

    def alive(self) -> bool:
        return False

    def check(self, *, alive: bool) -> None:
        raise GangFailed(failure_message(self, {"rank": 0, "kind": "ended"}))

    def end(self) -> None:
        pass


@contextmanager
def alone(threads: int, gpu: int = 0) -> Iterator[None]:
    """Export the place of the only rank; restore the process's own environment afterwards.

    `threads` of a CPU; `gpu`: the number of the GPU that :func:`mlcd.utils.device.take_gpu` takes.
    """
    place = {
        "RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": str(gpu), "LOCAL_WORLD_SIZE": "1",
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
        "OMP_NUM_THREADS": str(threads), "GLOO_SOCKET_IFNAME": "lo",
    }  # fmt: skip
    before = {name: os.environ.get(name) for name in place}
    os.environ.update(place)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
