"""The files by which the ranks and drivers of a gang meet: its record, and a folder for each start.

job.json                     the record: which gang works here (:class:`Record`)
job-XXXXXXXXXXXX/            the gang's folder, named by its token
  rank-0.log                 rank 0's log
  JOBID_K_log.out            stdout and stderr of rank K; rank 0's has srun's words too
  try-N/                     start N of the job, counted from 0 (Slurm may start it again)
    rank-K.json              rank K has started: process, host, time
    rank-K.usage.json        what it takes, written every few seconds: its heartbeat
    rank-K.done              its function has returned
    rank-K.left              it ended by itself, without a result
    failed.json              the first failure: creation is exclusive, so there is one first
    killed.json              the first rank of a local gang that was ended by a signal
  stop                       a driver asks the ranks to save and end
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import socket
import time
import uuid
from pathlib import Path
from typing import Any

from mlcd.utils.files import write_json

FAILED = "failed.json"
KILLED = "killed.json"
#: In a gang's folder.
STOP = "stop"
RECORD = "job.json"
RANK_LOG = "rank-0.log"


@dataclasses.dataclass
class Record:
    """Which gang works for an output; there is one record for each output.

    `work`: hash of what is to be made. `job_id` is None until the launcher has named the job.
    `place`: what the launcher needs to know about it besides. `resubmitted`: how often the driver
    has submitted it again. `submitted`: when, in seconds since the epoch.
    """

    launcher: str
    folder: str
    name: str
    ranks: int
    work: str
    job_id: str | None = None
    place: dict[str, Any] = dataclasses.field(default_factory=dict)
    resubmitted: int = 0
    submitted: float = 0.0

    @property
    def token(self) -> str:
        """Tells this gang from any other: the name of its folder."""
        return Path(self.folder).name

    @classmethod
    def new(cls, home: Path, launcher: str, stage: str, ranks: int, work: str) -> Record:
        """Return the record of a gang that is about to be submitted, with a folder of its own."""
        token = uuid.uuid4().hex[:12]
        return cls(
            launcher=launcher,
            folder=str(home / f"job-{token}"),
            name=f"mlcd-{stage}-{token}",
            ranks=ranks,
            work=work,
            submitted=time.time(),
        )

    @classmethod
    def read(cls, home: Path) -> Record | None:
        """Return the record in `home`, or None if there is none or it is damaged."""
        try:
            values = json.loads((home / RECORD).read_text())
            record = cls(**values)
        except (OSError, ValueError, TypeError):
            return None
        return record if record.is_valid() else None

    def is_valid(self) -> bool:
        """True if every field has its type: a damaged disk, or another version, wrote the file."""
        kinds: dict[str, Any] = {
            "launcher": str, "folder": str, "name": str, "ranks": int, "work": str,
            "job_id": (str, type(None)), "place": dict, "resubmitted": int,
            "submitted": (int, float),
        }  # fmt: skip
        return all(isinstance(getattr(self, field), kind) for field, kind in kinds.items())

    def write(self, home: Path) -> None:
        """Write the record atomically into `home`."""
        write_json(home / RECORD, dataclasses.asdict(self))


def gang_folder(output: Path) -> Path:
    """Return where the gang that writes the file `output` is recorded.

    It depends on nothing else: whatever config, code, launcher or machine asks for this output, all
    meet in one record.
    """
    return output.parent / "state" / f"{output.name}.gang"


def try_folder(folder: Path, number: int) -> Path:
    """Return the folder of a start of the job, counted from 0."""
    return folder / f"try-{number}"


def newest_try(folder: Path) -> Path:
    """Return the folder of the newest start of the job."""
    tries = folder.glob("try-*")
    return max(tries, key=lambda path: int(path.name[4:]), default=try_folder(folder, 0))


def log_of(folder: Path, job_id: str, rank: int) -> Path:
    """Return the file with a rank's stdout and stderr; rank 0's has srun's words too."""
    return folder / f"{job_id}_{rank}_log.out"


def report_failure(files: Path, failure: dict[str, Any], name: str = FAILED) -> None:
    """Leave a failure in a start's folder `files`, unless another one was left before it."""
    temporary = files / f".{name}.{failure['rank']}.{os.getpid()}"
    try:
        temporary.write_text(json.dumps(failure))
        with contextlib.suppress(FileExistsError):
            os.link(temporary, files / name)
    finally:
        temporary.unlink(missing_ok=True)


def read_failure(files: Path, name: str) -> dict[str, Any] | None:
    """Return what :func:`report_failure` left in a start's folder, or None."""
    with contextlib.suppress(FileNotFoundError):
        failure: dict[str, Any] = json.loads((files / name).read_text())
        return failure
    return None


def free_port() -> int:
    """Return a port of the loopback interface that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
