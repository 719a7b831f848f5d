"""Decode images in worker processes that may die: an image is counted, the stage continues.

A library that decodes strangers' bytes can crash or be killed for its memory. Each worker has its
own pipe and answers image by image, so that the one it died on is known. That image is tried
once more by a fresh worker (it may have been the machine), then counted as `crashed`.

A thread hands out images and takes results, so that workers decode while the caller is busy with a
batch. Pixels of a known size are written by workers to where the caller reads them, a ring of a few
batches in shared memory.

No torch here: workers start in the time that numpy and Pillow take to import.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np

from mlcd.data.decode import BadImage, decode
from mlcd.data.pointers import is_index, read_indexed
from mlcd.data.preprocess import Preprocess
from mlcd.data.shared_array import SharedArray
from mlcd.data.tars import digest_of, not_the_image
from mlcd.utils.errors import UserError
from mlcd.utils.processes import check_workers, ending

#: Seconds that one image may take before its worker is taken for hung.
TIMEOUT = 300.0
#: Times that an image may end its worker before it is given up.
_ATTEMPTS = 2
#: Images given to a worker at once, and batches that are decoded or used at a time.
_TASK = 8
_BATCHES = 3

#: Path of the tar or index (or of the image itself), offset, size, and the digest that the bytes
#: must have (:func:`mlcd.data.tars.digest_of`), None where none is known.
ImageLocation = tuple[str, int, int, int | None]
#: uint8 pixels [H, W, 3], or the reason why there are none.
Decoded = np.ndarray | str


class DecodedBatch(NamedTuple):
    """`found`: one :data:`Decoded` per place. `ring`: uint8 [n, H, W, 3], which `found` lies in.

    With a ring, pixels stay until the next batch is asked for.
    """

    found: list[Decoded]
    ring: np.ndarray | None

    def reasons(self) -> list[str]:
        """Return why there is no image, one word per place, '' where there is one."""
        return [item if isinstance(item, str) else "" for item in self.found]

    def pixels(self) -> np.ndarray:
        """Return uint8 [m, H, W, 3] of the m images that there are, at least one."""
        good = [item for item in self.found if not isinstance(item, str)]
        if self.ring is not None and len(good) == len(self.found):
            return self.ring
        return np.stack(good)


class ImageReader:
    """Reads the bytes of an image at an :data:`ImageLocation`; the last tar stays open."""

    def __init__(self) -> None:
        self._opened, self._descriptor = "", -1

    def __call__(self, place: ImageLocation) -> bytes:
        """Return the bytes, compared with the digest.

        Raises OSError if a tar cannot be read, :class:`UserError` if the bytes are others, or as
        :func:`.pointers.read_indexed`.
        """
        path, offset, size, digest = place
        if is_index(path):
            return read_indexed(path, offset, digest)
        if path != self._opened:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._opened, self._descriptor = "", -1
            self._descriptor, self._opened = os.open(path, os.O_RDONLY), path
        data = os.pread(self._descriptor, size, offset)
        if len(data) != size:
            raise OSError(f"{path}: shorter than expected")
        if digest is not None and digest_of(data) != digest:
            raise UserError(not_the_image(path, offset))
        return data


@dataclass(frozen=True)
class DecodeImage:
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
    #: Numbers of the images that it holds, the current one first.
    task: deque[int] = field(default_factory=deque)
    since: float = 0.0


@dataclass
class _Work:
    """What the thread of one call of :meth:`DecodePool.batches` knows, by the numbers of images."""

    source: Iterator[list[Any]]
    places: dict[int, Any] = field(default_factory=dict)
    #: Where in the ring an image's pixels go: slot and row.
    targets: dict[int, tuple[int, int]] = field(default_factory=dict)
    results: dict[int, Decoded] = field(default_factory=dict)
    waiting: deque[int] = field(default_factory=deque)
    attempts: dict[int, int] = field(default_factory=dict)
    #: Images of each batch that is not handed over yet, and how many of each slot are to come.
    opened: deque[range] = field(default_factory=deque)
    missing: list[int] = field(default_factory=lambda: [0] * _BATCHES)
    first: int = 0
    count: int = 0
    more: bool = True

    def open(self) -> bool:
        """Take the next batch of places, if there is one."""
        batch = next(self.source, None)
        if batch is None:
            self.more = False
            return False
        numbers = range(self.first, self.first + len(batch))
        slot = self.count % _BATCHES
        self.places.update(zip(numbers, batch, strict=True))
        self.targets.update((number, (slot, row)) for row, number in enumerate(numbers))
        self.missing[slot] = len(batch)
        self.waiting.extend(numbers)
        self.opened.append(numbers)
        self.first, self.count = numbers.stop, self.count + 1
        return True

    def settle(self, number: int, result: Decoded) -> None:
        """Keep what came of an image."""
        self.results[number] = result
        self.missing[self.targets[number][0]] -= 1

    def close(self) -> tuple[list[Decoded], int] | None:
        """Return what came of the first open batch, and its slot, once it is whole."""
        slot = (self.count - len(self.opened)) % _BATCHES
        if not self.opened or self.missing[slot]:
            return None
        numbers = self.opened.popleft()
        for number in numbers:
            del self.places[number], self.targets[number]
        return [self.results.pop(number) for number in numbers], slot


class DecodePool:
    """`workers` processes that decode images with `decoder` (picklable, bytes → pixels).

    A context manager; at its end all workers are gone. `loose`: each image is a file of its own,
    so that one which cannot be read is a failed image (reason `unreadable`) and not a lost tar.
    `reader` (picklable, place → bytes, or whatever else the decoder takes) reads places of another
    kind; decoder and reader may say by :class:`BadImage` why there is no image. `ring`: (n, H, W)
    where all pixels are uint8 [H, W, 3] and a batch has n places at most; they are then handed over
    in shared memory.
    """

    def __init__(
        self,
        decoder: Callable[[Any], Any],
        workers: int,
        *,
        timeout: float = TIMEOUT,
        loose: bool = False,
        reader: Callable[[Any], Any] | None = None,
        ring: tuple[int, int, int] | None = None,
    ) -> None:
        self._decoder = decoder
        self._reader = reader or ImageReader()
        self._timeout = timeout
        self._loose = loose
        # Spawned, not forked: the parent holds torch's threads and perhaps a CUDA context.
        self._context = multiprocessing.get_context("spawn")
        self._workers: list[_Worker] = []
        self._count = workers
        self._ring = SharedArray((_BATCHES, *ring, 3)) if ring else None
        self._caller: Connection | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> DecodePool:
        check_workers(self._count)
        self._workers = [self._start() for _ in range(self._count)]
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()
        for worker in self._workers:
            worker.connection.close()
            worker.process.kill()
        for worker in self._workers:
            worker.process.join()
        if self._ring:
            self._ring.close()

    def batches(self, batches: Iterable[list[Any]]) -> Iterator[DecodedBatch]:
        """Decode `batches` of places in order; a thread iterates over them. One call at a time.

        Some batches are decoded ahead, also while the caller is busy. Raises :class:`UserError` if
        workers cannot start or a tar cannot be read: that is the machine's fault, not an image's.
        """
        done: queue.SimpleQueue[DecodedBatch | BaseException | None] = queue.SimpleQueue()
        # A word wakes the thread; the end of the pipe tells it to stop.
        self._caller, theirs = self._context.Pipe()
        arguments = _Work(iter(batches)), theirs, done
        self._thread = threading.Thread(target=self._run, args=arguments, daemon=True)
        self._thread.start()
        try:
            while (batch := done.get()) is not None:
                if isinstance(batch, BaseException):
                    raise batch
                yield batch
                with contextlib.suppress(OSError):
                    self._caller.send(None)
        finally:
            self._stop()
            batch = None

    def _stop(self) -> None:
        """End the thread, if there is one; workers end what they have in hand."""
        if self._caller and self._thread:
            self._caller.close()
            self._thread.join()

    def _run(
        self,
        work: _Work,
        caller: Connection,
        done: queue.SimpleQueue[DecodedBatch | BaseException | None],
    ) -> None:
        """Put all batches, then None, into `done`; at most so many are not used up at a time."""
        free = _BATCHES
        try:
            while True:
                while work.more and free:
                    free -= work.open()
                while closed := work.close():
                    found, slot = closed
                    ring = self._ring.array[slot, : len(found)] if self._ring else None
                    done.put(DecodedBatch(found, ring))
                if not work.more and not work.opened:
                    return done.put(None)
                self._hand_out(work)
                if self._collect(work, caller):
                    try:
                        caller.recv()
                    except (EOFError, OSError):  # the caller wants no more
                        return None
                    free += 1
        except BaseException as error:
            return done.put(error)
        finally:
            caller.close()

    def _hand_out(self, work: _Work) -> None:
        """Give each idle worker the next images."""
        for worker in self._workers:
            if work.waiting and worker.ready and not worker.task:
                numbers = [work.waiting.popleft() for _ in range(min(_TASK, len(work.waiting)))]
                # A worker that just died is noticed, with its task, by the next `_collect`.
                with contextlib.suppress(OSError):
                    worker.connection.send(
                        [(work.places[number], work.targets[number]) for number in numbers]
                    )
                worker.task.extend(numbers)
                worker.since = time.monotonic()

    def _collect(self, work: _Work, caller: Connection) -> bool:
        """Take what workers say, and replace the dead and the hung. True if the caller calls."""
        by_connection = {worker.connection: worker for worker in self._workers}
        called = False
        for connection in wait([*by_connection, caller], timeout=1.0):
            if connection is caller:
                called = True
                continue
            worker = by_connection[cast(Connection, connection)]  # `wait` returns what it is given
            try:
                message = worker.connection.recv()
            except (EOFError, OSError):
                self._bury(worker, "crashed", work)
                continue
            worker.since = time.monotonic()
            if isinstance(message, UserError):
                raise message
            if isinstance(message, OSError):
                raise UserError(str(message))
            if worker.ready:
                number = worker.task.popleft()
                if message is None and self._ring:
                    message = self._ring.array[work.targets[number]]
                work.settle(number, message)
            else:
                worker.ready = True
        for worker in list(self._workers):
            if worker.task and time.monotonic() - worker.since > self._timeout:
                self._bury(worker, "timeout", work)
        return called

    def _bury(self, worker: _Worker, reason: str, work: _Work) -> None:
        """Replace a worker; its current image is tried again or given up, the rest goes back."""
        worker.process.kill()
        worker.process.join()
        worker.connection.close()
        if not worker.ready:
            raise UserError(
                f"--workers: a decoding process ended at its start by "
                f"{ending(worker.process.exitcode or 0)}; see its message above, or run with fewer "
                "workers"
            )
        if worker.task:
            number = worker.task[0]
            work.attempts[number] = work.attempts.get(number, 0) + 1
            if work.attempts[number] >= _ATTEMPTS:
                work.settle(worker.task.popleft(), reason)
        work.waiting.extendleft(reversed(worker.task))
        self._workers[self._workers.index(worker)] = self._start()

    def _start(self) -> _Worker:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(
            target=_work,
            args=(theirs, self._decoder, self._reader, self._loose, self._ring),
            daemon=True,
        )
        process.start()
        theirs.close()
        return _Worker(process, ours)


def _work(
    connection: Connection,
    decoder: Callable[[Any], Any],
    reader: Callable[[Any], Any],
    loose: bool,
    ring: SharedArray | None,
) -> None:
    """Run a worker: lists of places in; for each place, in order, pixels or a reason out.

    With a ring, pixels are written there and None is said.
    """
    # Where memory runs out, Linux shall end this process and not the stage.
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the stage, which ends us
    connection.send("ready")
    while True:
        try:
            task = connection.recv()
        except (EOFError, OSError):  # the stage is gone
            return
        for place, target in task:
            try:
                found = decoder(reader(place))
                if ring is not None:
                    ring.array[target] = found
                    found = None
                connection.send(found)
            except BadImage as error:
                connection.send(error.reason)
            except UserError as error:
                connection.send(error)
                return
            except OSError as error:
                if loose:
                    connection.send("unreadable")
                    continue
                line = f"{error}; the image store is damaged or away: rerun download"
                connection.send(OSError(line))
                return
