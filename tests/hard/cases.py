"""One case of the campaign in processes of its own: started, watched, ended by id, judged.

Every case runs in a child that adopts whatever it starts (a subreaper of Linux), so that no process
of a case is lost, and none that the campaign did not start is ever touched.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import random
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil

_PR_SET_CHILD_SUBREAPER = 36
_POLL = 0.01
#: Seconds after which one run of a program is a hang. The longest takes some tens of seconds.
LIMIT = 180.0
#: Outcomes that are as they should be. All others are faults.
FINE = ("equal", "same", "noticed", "other input", "refused", "counted")


@dataclass
class Ended:
    """How a program ended: its status (−N for signal N), what it said, and whether it hung."""

    status: int
    said: str
    seconds: float
    hung: bool = False

    @property
    def traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.said

    def outcome(self) -> str:
        """Judge a program that could not do its work: one line for the user is all it may say."""
        if self.hung:
            return "hang"
        if self.status < 0 or self.status in (134, 139) or "Fatal Python error" in self.said:
            return "crash"
        if self.traceback:
            return "traceback"
        return "done" if self.status == 0 else "noticed"


@dataclass
class Result:
    """One line of the campaign's record."""

    part: str
    kind: str
    number: int
    outcome: str
    seconds: float = 0.0
    #: What happened, for the reader of a fault.
    told: str = ""
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.part}/{self.kind}/{self.number}"

    @property
    def fault(self) -> bool:
        return self.outcome not in FINE

    def line(self, seed: int) -> str:
        return json.dumps({"seed": seed, "case": self.name, **asdict(self)}, ensure_ascii=False)


@dataclass
class Case:
    """A case to run: `work` gets a scratch folder and a random stream of its own."""

    part: str
    kind: str
    number: int
    work: Callable[[Path, random.Random], Result]
    #: The last resort: each start of a program has a limit of its own.
    limit: float = 3600


def adopt_orphans() -> None:
    """Become the parent of every process below this one that loses its own."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def begin(work: Callable[[], int], said: Path) -> int:
    """Fork: the child does `work` in a session of its own and writes into `said`. Return its id."""
    sys.stdout.flush()
    sys.stderr.flush()
    if (pid := os.fork()) != 0:
        return pid
    status = 1
    try:
        os.setsid()
        out = os.open(said, os.O_CREAT | os.O_WRONLY | os.O_APPEND, 0o644)
        null = os.open(os.devnull, os.O_RDONLY)
        for source, target in ((null, 0), (out, 1), (out, 2)):
            os.dup2(source, target)
        # Whoever started this program may have put other streams in their place.
        sys.stdout, sys.stderr = (os.fdopen(one, "w", closefd=False) for one in (1, 2))
        status = work()
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def wait(pid: int, seconds: float) -> int | None:
    """Return the status of a child of this process (−N for signal N), or None if it still works."""
    end = time.monotonic() + seconds
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() >= end:
            return None
        time.sleep(_POLL)


def below(pid: int | None = None) -> list[psutil.Process]:
    """Return the living processes below `pid` (this process), orphans that it adopted included."""
    found = psutil.Process(pid).children(recursive=True)
    alive = []
    for process in found:
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                alive.append(process)
    return alive


def end_all(pid: int | None = None) -> None:
    """Kill everything below `pid` (this process), by id, until nothing is left."""
    for _ in range(100):
        try:
            found = below(pid)
        except psutil.NoSuchProcess:
            return
        if not found:
            return
        for process in found:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        time.sleep(_POLL)


def run(work: Callable[[], int], said: Path, limit: float = LIMIT) -> Ended:
    """Do `work` in a child to its end, or to the limit, at which all that it started is ended."""
    start = time.monotonic()
    said.unlink(missing_ok=True)
    pid = begin(work, said)
    return finish(pid, said, start, limit)


def finish(pid: int, said: Path, start: float, limit: float = LIMIT) -> Ended:
    """Wait for a child that :func:`begin` started; see :func:`run`."""
    status = wait(pid, max(0.0, start + limit - time.monotonic()))
    hung = status is None
    if hung:
        end_all()
        status = wait(pid, 10) or -signal.SIGKILL
    assert status is not None
    text = said.read_text(errors="replace") if said.exists() else ""
    return Ended(status, text, time.monotonic() - start, hung)


def run_cases(
    cases: Iterable[Case], scratch: Path, seed: int, workers: int, until: float
) -> Iterator[Result]:
    """Run cases side by side, each in a process and a folder of its own; none starts after `until`.

    A case that passes its limit is a hang: it and all below it are ended.
    """
    waiting = iter(cases)
    working: dict[int, tuple[Case, Path, float]] = {}
    more = True
    while working or more:
        while more and len(working) < workers:
            case = next(waiting, None) if time.monotonic() < until else None
            if case is None:
                more = False
                break
            folder = scratch / f"{case.part}-{case.kind}-{case.number}".replace("/", "_")
            remove(folder)
            folder.mkdir(parents=True)
            pid = begin(lambda case=case, folder=folder: _work(case, folder, seed), folder / "case")
            working[pid] = (case, folder, time.monotonic())
        for pid, (case, folder, start) in list(working.items()):
            status = wait(pid, 0)
            late = status is None and time.monotonic() - start > case.limit
            if status is None and not late:
                continue
            if late:
                end_all(pid)
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                wait(pid, 10)
            del working[pid]
            yield _result(case, folder, time.monotonic() - start, late)
            remove(folder)
        time.sleep(_POLL)


def _work(case: Case, folder: Path, seed: int) -> int:
    adopt_orphans()
    name = f"{seed}/{case.part}/{case.kind}/{case.number}"
    try:
        result = case.work(folder, random.Random(name))
    finally:
        end_all()
    (folder / "result.json").write_text(json.dumps(asdict(result)))
    return 0


def _result(case: Case, folder: Path, seconds: float, late: bool) -> Result:
    result = Result(case.part, case.kind, case.number, "hang", told="the case passed its limit")
    if not late:
        try:
            result = Result(**json.loads((folder / "result.json").read_text()))
        except (OSError, ValueError):
            said = (folder / "case").read_text(errors="replace")
            result = Result(case.part, case.kind, case.number, "harness", told=said[-4000:])
    result.seconds = round(seconds, 2)
    return result


def remove(folder: Path) -> None:
    """Remove a scratch folder of the campaign; a file that appears meanwhile is tried again."""
    import shutil

    for _ in range(5):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.1)
