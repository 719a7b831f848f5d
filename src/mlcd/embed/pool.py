"""Decode pictures in worker processes that may die: a picture is counted, the stage goes on.

A library that decodes strangers' bytes can crash or be killed for its memory. Each worker has its
own pipe and answers picture by picture, so that the one it died on is known. That picture is tried
once more by a fresh worker (it may have been the machine), then counted as `crashed`.

No torch here: workers start in the time that numpy and Pillow take to import.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import numpy as np

from mlcd.encoders.frozen.preprocess import Preprocess
from mlcd.errors import UserError
from mlcd.images import BadImage, decode

#: Seconds that one picture may take before its worker is taken for hung.
TIMEOUT = 300.0
#: Times that a picture may end its worker before it is given up.
_ATTEMPTS = 2
#: Pictures given to a worker at once, and batches decoded ahead of the encoder.
_TASK = 8
_AHEAD = 3

#: Path of the tar (or of the picture itself), offset, size.
Place = tuple[str, int, int]
#: uint8 pixels [H, W, 3], or the reason why there are none.
Decoded = np.ndarray | str


@dataclass(frozen=True)
class DecodePicture:
    """Bytes to pixels, as a worker does it. Raises :class:`BadImage`."""

    pixels: Preprocess
    max_pixels: int

    def __call__(self, data: bytes) -> np.ndarray:
        try:
            return self.pixels(decode(data, max_pixels=self.max_pixels))
        except MemoryError:
            raise BadImage("out_of_memory", "too large for this machine") from None


@dataclass
class _Worker:
    process: Any
    connection: Connection
    ready: bool = False
    #: Numbers of the pictures that it holds, the current one first.
    task: deque[int] = field(default_factory=deque)
    since: float = 0.0


class DecodePool:
    """`workers` processes that decode pictures with `decoder` (picklable, bytes → pixels).

    A context manager; at its end all workers are gone. `loose`: each picture is a file of its own,
    so that one which cannot be read is a failed picture (reason `unreadable`) and not a lost tar.
    """

    def __init__(
        self,
        decoder: Callable[[bytes], np.ndarray],
        workers: int,
        *,
        timeout: float = TIMEOUT,
        loose: bool = False,
    ) -> None:
        self._decoder = decoder
        self._timeout = timeout
        self._loose = loose
        # Spawned, not forked: the parent holds torch's threads and perhaps a CUDA context.
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        self._count = workers

    def __enter__(self) -> DecodePool:
        self._workers = [self._start() for _ in range(self._count)]
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.connection.close()
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()

    def batches(self, batches: Iterable[list[Place]]) -> Iterator[list[Decoded]]:
        """Decode `batches` of places in order; each yields one :data:`Decoded` a place.

        A few batches are decoded ahead of the caller. Raises :class:`UserError` if workers cannot
        start or a tar cannot be read: that is the machine's fault, not a picture's.
        """
        places: dict[int, Place] = {}
        results: dict[int, Decoded] = {}
        waiting: deque[int] = deque()
        attempts: dict[int, int] = {}
        open_batches: deque[range] = deque()
        source, first, more = iter(batches), 0, True
        while True:
            while more and len(open_batches) < _AHEAD:
                batch = next(source, None)
                if batch is None:
                    more = False
                    break
                numbers = range(first, first + len(batch))
                places.update(zip(numbers, batch, strict=True))
                waiting.extend(numbers)
                open_batches.append(numbers)
                first = numbers.stop
            if not open_batches:
                return
            self._hand_out(waiting, places)
            if all(number in results for number in open_batches[0]):
                numbers = open_batches.popleft()
                for number in numbers:
                    del places[number]
                yield [results.pop(number) for number in numbers]
                continue
            self._collect(results, waiting, attempts)

    def _hand_out(self, waiting: deque[int], places: dict[int, Place]) -> None:
        """Give each idle worker the next pictures."""
        for worker in self._workers:
            if waiting and worker.ready and not worker.task:
                numbers = [waiting.popleft() for _ in range(min(_TASK, len(waiting)))]
                # A worker that just died is noticed, with its task, by the next `_collect`.
                with contextlib.suppress(OSError):
                    worker.connection.send([places[number] for number in numbers])
                worker.task.extend(numbers)
                worker.since = time.monotonic()

    def _collect(
        self, results: dict[int, Decoded], waiting: deque[int], attempts: dict[int, int]
    ) -> None:
        """Take what workers have to say; replace the dead and the hung."""
        by_connection = {worker.connection: worker for worker in self._workers}
        for connection in wait(list(by_connection), timeout=1.0):
            worker = by_connection[connection]  # type: ignore[index]
            try:
                message = worker.connection.recv()
            except (EOFError, OSError):
                self._bury(worker, "crashed", results, waiting, attempts)
                continue
            worker.since = time.monotonic()
            if isinstance(message, OSError):
                raise UserError(f"{message}; the picture store is damaged or away: rerun download")
            if worker.ready:
                results[worker.task.popleft()] = message
            else:
                worker.ready = True
        for worker in list(self._workers):
            if worker.task and time.monotonic() - worker.since > self._timeout:
                self._bury(worker, "timeout", results, waiting, attempts)

    def _bury(
        self,
        worker: _Worker,
        reason: str,
        results: dict[int, Decoded],
        waiting: deque[int],
        attempts: dict[int, int],
    ) -> None:
        """Replace a worker; its current picture is tried again or given up, the rest goes back."""
        worker.process.kill()
        worker.process.join()
        worker.connection.close()
        if not worker.ready:
            raise UserError(
                f"--workers: a decoding process ended at its start (exit {worker.process.exitcode})"
                "; see its message above, or run with fewer workers"
            )
        if worker.task:
            number = worker.task[0]
            attempts[number] = attempts.get(number, 0) + 1
            if attempts[number] >= _ATTEMPTS:
                results[worker.task.popleft()] = reason
        waiting.extendleft(reversed(worker.task))
        self._workers[self._workers.index(worker)] = self._start()

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_work, args=(theirs, self._decoder, self._loose), daemon=True
        )
        process.start()
        theirs.close()
        return _Worker(process, ours)


def _work(connection: Connection, decoder: Callable[[bytes], np.ndarray], loose: bool) -> None:
    """Run a worker: lists of places in; for each place, in order, pixels or a reason out."""
    # Where memory runs out, Linux shall end this process and not the stage.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the stage, which ends us
    connection.send("ready")
    opened, descriptor = "", None
    while True:
        try:
            task = connection.recv()
        except (EOFError, OSError):  # the stage is gone
            return
        for path, offset, size in task:
            try:
                if path != opened:
                    if descriptor is not None:
                        os.close(descriptor)
                        opened, descriptor = "", None
                    descriptor, opened = os.open(path, os.O_RDONLY), path
                data = os.pread(descriptor, size, offset)
                if len(data) != size:
                    raise OSError(f"{path}: shorter than expected")
            except OSError as error:
                if loose:
                    connection.send("unreadable")
                    continue
                connection.send(OSError(str(error)))
                return
            try:
                connection.send(decoder(data))
            except BadImage as error:
                connection.send(error.reason)
