"""One writer an output: a lease that survives SIGKILL and works across the machines of a cluster.

    with lease.writing(output, identity) as wanted:
        if wanted:
            ...                # the work; its files are whole when it returns

A second writer waits while the first is alive. If the first then finished the same work (equal
`identity`, files untouched since), the second is told that nothing is wanted; if the first is gone,
the second takes over. Needed where a batch system's jobs outlive the process that started them.

The lease is a file `N.json` in a folder beside the output, made by exclusive creation, which works
on network disks where locks often do not. To take over from a dead holder is to create the next
number, so that of many only one succeeds. The holder touches its file every few seconds; others
see *whether* its time changes, by their own clock, so that clocks need not agree.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mlcd.slurm import client
from mlcd.utils import disk, fencing
from mlcd.utils.errors import UserError
from mlcd.utils.files import sha256_json
from mlcd.utils.logging import LOGGER
from mlcd.utils.processes import machine, process_alive, this_process

#: Seconds between signs of life.
BEAT = 10.0
#: Seconds of silence before Slurm is asked about a holder on another machine, …
_DOUBT = 3 * BEAT
#: … after which it is given up if Slurm does not know it, …
LEASE = 12 * BEAT
#: … and even if its job runs (the process in it is gone, say).
_STUCK = 90 * BEAT
_POLL = 1.0
#: Seconds for which a network disk may not show a lease's file to its holder.
_UNREADABLE = 60.0
#: Seconds for which an answer of Slurm's holds; well below _DOUBT, so that it is of this holder.
_ASK_EVERY = 15.0
_TELL_EVERY = 60.0


@contextlib.contextmanager
def writing(
    output: str | os.PathLike[str], *identity: Any, files: list[Path] | None = None
) -> Iterator[bool]:
    """Hold the lease on `output`; yields False if another process did this very work meanwhile.

    `identity`: JSON values that the result depends on, such as code, section and fingerprints.
    `files`: what must be as the other left it, `output` alone by default.
    """
    target = Path(output)
    held = Lease(target.parent / "state" / f"{target.name}.lease", identity, files or [target])
    if not held.acquire():
        yield False
        return
    try:
        with fencing.fenced(held.require):
            yield True
    except BaseException:
        held.release()
        raise
    held.release(finished=True)


class Pulse:
    """Tells for how long a value has not changed, by this process's own clock."""

    def __init__(self, read: Callable[[], Any]) -> None:
        self._read = read
        self._value = read()
        self._since = time.monotonic()
        #: Changes seen.
        self.beats = 0

    def silence(self) -> float:
        """Return the seconds since the value was last seen to change."""
        if (value := self._read()) != self._value:
            self._value, self._since = value, time.monotonic()
            self.beats += 1
        return time.monotonic() - self._since


def is_gone(holder: dict[str, Any], silence: float) -> bool:
    """True if the process that :func:`this_process` described is dead, as far as can be known.

    `silence`: seconds without a sign of life. On this machine the process is looked for; elsewhere
    Slurm is asked about its job, and without an answer a long silence decides.
    """
    if holder.get("machine") == machine():
        return not process_alive(holder["pid"], holder["created"])
    if silence < _DOUBT:
        return False
    period = int(time.monotonic() / _ASK_EVERY)
    status = _ask(holder["job"], period) if holder.get("job") else None
    if status is None:
        return silence > LEASE
    restarted = status.details.get("Restarts", holder["restarts"]) != holder["restarts"]
    if not status.alive or restarted or status.state == "PENDING":
        return True
    # A suspended process is silent and comes back.
    return status.state == "RUNNING" and silence > _STUCK


@functools.lru_cache(maxsize=64)
def _ask(job_id: str, period: int) -> client.Status | None:
    """Return Slurm's answer, asked for once a period: leases are tried every second."""
    return client.ask(job_id)


def is_process(record: Any) -> bool:
    """True if a record describes a process as :func:`this_process` does, and is not damaged."""
    kinds: dict[str, Any] = {
        "host": str, "machine": str, "pid": int, "created": (int, type(None)),
        "job": (str, type(None)), "restarts": str,
    }  # fmt: skip
    return isinstance(record, dict) and all(
        name in record and isinstance(record[name], kind) for name, kind in kinds.items()
    )


def live_holder(folder: Path) -> dict[str, Any] | None:
    """Return the process that holds the lease in `folder`, as seen from outside; None for nobody.

    By two clocks, of this machine and of the disk: it serves to tell minutes from days. Who wants
    the lease themselves ask :meth:`Lease.attempt`.
    """
    for path in sorted(folder.glob("[0-9]*.json"), reverse=True):
        record = _read(path)
        silence = max(0.0, time.time() - _beat(path) / 1e9)
        if is_process(record) and not is_gone(record, silence):
            return record
    return None


def describe(holder: dict[str, Any]) -> str:
    """Return words for a holder."""
    job = f" (Slurm job {holder['job']})" if holder.get("job") else ""
    return f"process {holder.get('pid', '?')} on {holder.get('host', '?')}{job}"


class Lease:
    """The right to write `files`, kept in `folder`."""

    def __init__(self, folder: Path, identity: Any, files: list[Path]) -> None:
        self.folder = folder
        self._identity = sha256_json(identity)
        self._files = files
        self._token = uuid.uuid4().hex
        self._path = folder
        self._ended = threading.Event()
        self._beating: threading.Thread | None = None
        self._pulses: dict[Path, Pulse] = {}

    def acquire(self) -> bool:
        """Wait for the lease; False if another holder finished the same work meanwhile."""
        waiting = self.folder / f"{self._token}.waiting"
        told = -_TELL_EVERY
        try:
            while True:
                records = [_read(path) for path in self._numbered()]
                if waiting.exists() and any(self._is_done(record) for record in records):
                    LOGGER.info("%s: finished by another process meanwhile", self._files[0])
                    return False
                if (holder := self.attempt()) is None:
                    return True
                with contextlib.suppress(FileNotFoundError), disk.writing(waiting):
                    waiting.touch()
                if time.monotonic() - told >= _TELL_EVERY:
                    told = time.monotonic()
                    LOGGER.info("%s: waiting, %s writes it", self._files[0], describe(holder))
                time.sleep(_POLL * random.uniform(0.5, 1.0))
        finally:
            with contextlib.suppress(OSError):
                waiting.unlink(missing_ok=True)
            self._tidy()

    def attempt(self) -> dict[str, Any] | None:
        """Take the lease if it is free. Returns None if it is taken now, else its holder."""
        while True:
            # Another may make or remove it right now.
            with contextlib.suppress(FileExistsError), disk.writing(self._files[0]):
                self.folder.mkdir(parents=True, exist_ok=True)
            found = {path: _read(path) for path in self._numbered()}
            for path, record in found.items():
                if not self._over(path, record):
                    return {**record, "seen_alive": self._pulses[path].beats > 0}
            if self._create(found):
                return None
            time.sleep(_POLL * random.random())

    def require(self) -> None:
        """Raise :class:`UserError` if another process may hold the lease by now.

        So that one that was frozen, and given up, publishes nothing when it continues.
        """
        end = time.monotonic() + _UNREADABLE
        while True:
            try:
                if self._is_mine():
                    return
                break
            except FileNotFoundError:
                if not self._numbered():
                    return  # removed by hand: nobody else has taken it
                break
            except OSError:
                if time.monotonic() > end:
                    break
            time.sleep(0.2)
        raise UserError(
            f"{self._files[0]}: another process has taken over; this one publishes nothing more"
        )

    def release(self, *, finished: bool = False) -> None:
        """Give the lease back. If `finished`, those that wait now learn that it is done."""
        self._ended.set()
        if self._beating:
            self._beating.join()
        # Else it was given up, and the number may be another's.
        if _read(self._path).get("token") == self._token:
            self._give_back(finished)
        self._tidy()

    def _give_back(self, finished: bool) -> None:
        if finished and any(self.folder.glob("*.waiting")):
            temporary = self._path.with_suffix(".tmp")
            stamps = {path.name: stamp(path) for path in self._files}
            with contextlib.suppress(OSError):  # without it the others do the work once more
                temporary.write_text(json.dumps({"finished": self._identity, "files": stamps}))
                temporary.replace(self._path)
                return
            temporary.unlink(missing_ok=True)
        self._path.unlink(missing_ok=True)

    def _numbered(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.json"))

    def _over(self, path: Path, record: dict[str, Any]) -> bool:
        """True if the lease in `path` is held no more."""
        if "finished" in record or not path.exists():
            return True
        pulse = self._pulses.setdefault(path, Pulse(lambda: _beat(path)))
        silence = pulse.silence()
        # Unreadable: just being written, or cut off in that moment.
        return is_gone(record, silence) if is_process(record) else silence > LEASE

    def _create(self, over: dict[Path, dict[str, Any]]) -> bool:
        """Try to take the next number after those in `over`; True if this process has it alone."""
        number = max((int(path.stem) for path in over), default=0) + 1
        path = self.folder / f"{number:06d}.json"
        try:
            with path.open("x") as handle:
                handle.write(json.dumps({**this_process(), "token": self._token}))
        except (FileExistsError, FileNotFoundError):
            return False
        except OSError as error:
            # An empty file would keep the next one waiting for its holder.
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            raise disk.explained(error, self._files[0]) or error from None
        # Another may have counted from what stood here before: both see it, and both withdraw.
        # One of the old numbers may be another's by now, too.
        others = set(self._numbered()) - {path}
        if any(_read(other) != over.get(other) for other in others):
            path.unlink(missing_ok=True)
            return False
        for old in over:
            old.unlink(missing_ok=True)
        self._path = path
        self._beating = threading.Thread(target=self._beat_on, daemon=True)
        self._beating.start()
        return True

    def _beat_on(self) -> None:
        while not self._ended.wait(BEAT):
            try:
                if self._is_mine():
                    os.utime(self._path)
                    continue
                lost = True
            except FileNotFoundError:
                lost = bool(self._numbered())
            except OSError:
                continue  # a network disk has its moments
            if lost:
                # This process was frozen for so long that it was given up.
                LOGGER.error("%s: another process has taken over; ending", self._files[0])
                os._exit(1)

    def _is_mine(self) -> bool:
        """True if this lease's file is still its own. Raises :class:`OSError`."""
        text = self._path.read_text()
        with contextlib.suppress(ValueError):
            record = json.loads(text)
            return isinstance(record, dict) and record.get("token") == self._token
        return False

    def _is_done(self, record: dict[str, Any]) -> bool:
        stamps = {path.name: stamp(path) for path in self._files}
        # All there, too: a file may have gone before its writer looked at it.
        same = record.get("finished") == self._identity and record.get("files") == stamps
        return same and None not in stamps.values()

    def _tidy(self) -> None:
        """Remove what says nothing to anybody any more."""
        with contextlib.suppress(OSError):
            if not any(self.folder.glob("*.waiting")):
                for path in self._numbered():
                    if "finished" in _read(path):
                        path.unlink(missing_ok=True)
            self.folder.rmdir()


def _read(path: Path) -> dict[str, Any]:
    """Return a lease's record; {} if it is damaged, just being written, or gone."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _beat(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


def stamp(path: Path) -> list[int] | None:
    """Return size in bytes and time of change in ns, by which a rewritten file is known."""
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_size, found.st_mtime_ns]
