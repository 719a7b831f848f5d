"""What a pass knows of the hosts that it asks: how many requests each has, and until when it wants
none.

Made before the fetching processes are forked, which then share it. Hosts are kept in buckets by
their names: two that share one by chance wait for each other, which is only more polite. The
names' addresses are remembered in each process.
"""

from __future__ import annotations

import contextlib
import email.utils
import socket
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from mlcd.stages.download.reasons import OWN
from mlcd.utils.errors import UserError
from mlcd.utils.files import read_json, write_json

_BUCKETS = 512
#: Names that a process remembers the addresses of.
_MOST_NAMES = 100_000
#: Seconds between two looks at whether a host may be asked again.
_POLL = 0.5

Addresses = list[str]


class Hosts:
    """Limits of requests per host, for all processes of a pass.

    `most`: requests to a host at a time, 0 for any number. `patience`: seconds of Retry-After that
    a request waits for. `dns`: seconds that a name's addresses hold. `until`: the chunk's end on
    the monotonic clock. `kept`: file in which a host's wish outlives the pass.
    """

    def __init__(
        self, most: int, patience: float, dns: float, until: float, kept: Path | None = None
    ) -> None:
        context = get_context("fork")
        self._slots = [context.BoundedSemaphore(most) for _ in range(_BUCKETS if most else 0)]
        #: By bucket: the time (of the clock on the wall, which other processes have too) before
        #: which it wants no request.
        self._not_before: Any = context.RawArray("d", _BUCKETS)
        self.patience = patience
        self._until = until
        self._kept = kept
        self._dns = dns
        self._names: dict[tuple[str, int], tuple[float, Future[Addresses]]] = {}
        self._lock = threading.Lock()
        if kept is not None and kept.exists():
            with contextlib.suppress(UserError, ValueError, TypeError, IndexError):
                for bucket, end in read_json(kept).items():
                    self._not_before[int(bucket)] = float(end)

    def enter(self, host: str) -> Callable[[], None]:
        """Wait until a host may be asked once more; return what to call when that is done.

        Raises ValueError with our reason if it wants none for longer than the patience, or if the
        chunk's time is over before.
        """
        bucket = _bucket(host)
        while (wait := self._not_before[bucket] - time.time()) > 0:
            if wait > self.patience:
                raise ValueError(f"{OWN}throttled: it asked for {wait:.0f} s without a request")
            self._sleep(wait)
        if not self._slots:
            return lambda: None
        slot = self._slots[bucket]
        if not slot.acquire(timeout=max(0.0, self._until - time.monotonic())):
            raise ValueError(f"{OWN}deadline")
        return _once(slot.release)

    def pause(self, host: str, retry_after: str | None) -> float | None:
        """Take a Retry-After to heart; return its seconds, or None if there is none.

        It may be seconds or a date (RFC 9110). No process asks the host before.
        """
        seconds = seconds_of(retry_after)
        if seconds is not None:
            bucket = _bucket(host)
            self._not_before[bucket] = max(self._not_before[bucket], time.time() + seconds)
        return seconds

    def keep(self) -> None:
        """Write down the hosts that want no request yet, for the passes that follow."""
        now = time.time()
        found = {str(i): end for i, end in enumerate(self._not_before) if end > now}
        if self._kept is not None and (found or self._kept.exists()):
            # A full disk is told by what filled it.
            with contextlib.suppress(OSError, UserError):
                write_json(self._kept, found)

    def addresses(self, host: str, port: int) -> Addresses:
        """Return the addresses of a name; asked once in `dns` seconds, also if it has none.

        Raises OSError as socket.getaddrinfo.
        """
        key, now = (host, port), time.monotonic()
        with self._lock:
            asked, found = self._names.get(key, (0.0, None))
            mine = found is None or now - asked >= self._dns
            if mine or found is None:
                found = Future()
                if self._dns:
                    if len(self._names) >= _MOST_NAMES:
                        del self._names[next(iter(self._names))]
                    self._names.pop(key, None)
                    self._names[key] = (now, found)
        if mine:
            try:
                places = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
                found.set_result([str(place[4][0]) for place in places])
            except BaseException as error:
                found.set_exception(error)
        return found.result()

    def _sleep(self, seconds: float) -> None:
        if time.monotonic() + seconds >= self._until:
            raise ValueError(f"{OWN}deadline")
        time.sleep(min(seconds, _POLL))


def seconds_of(retry_after: str | None) -> float | None:
    """Return the seconds that a Retry-After header asks for, None if it says nothing readable."""
    text = (retry_after or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _bucket(host: str) -> int:
    return zlib.crc32(host.lower().encode("utf-8", "replace")) % _BUCKETS


def _once(call: Callable[[], object]) -> Callable[[], None]:
    """Return a function that calls `call` the first time only."""
    done: list[bool] = []

    def release() -> None:
        if not done:
            done.append(True)
            call()

    return release
