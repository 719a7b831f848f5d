"""Connections that wait open for the next request to the same host."""

from __future__ import annotations

import http.client
import threading
import time
import urllib.request
from typing import NamedTuple

#: What a connection is for: scheme, and host with port.
Key = tuple[str, str]
#: Connections that wait in a process, and those of one host.
_MOST, _MOST_PER_HOST = 256, 8


class Idle(NamedTuple):
    """An open connection; `private`: it goes to an address of a private network."""

    connection: http.client.HTTPConnection
    private: bool
    since: float


def exchange(
    connection: http.client.HTTPConnection, request: urllib.request.Request
) -> http.client.HTTPResponse:
    """Send a request and read the head of its answer, as urllib does, but for its close."""
    headers = {**request.headers, **request.unredirected_hdrs, "Connection": "keep-alive"}
    named = {name.title(): value for name, value in headers.items()}
    try:
        connection.request(request.get_method(), request.selector, request.data, named)
        answer = connection.getresponse()
    except BaseException:
        connection.close()
        raise
    # Where urllib's response has them.
    answer.url, answer.msg = request.full_url, answer.reason  # type: ignore[assignment]
    return answer


class Pool:
    """Open connections by host, each for `seconds` at most; 0 keeps none."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._idle: dict[Key, list[Idle]] = {}
        self._count = 0
        self._lock = threading.Lock()

    def take(self, key: Key) -> Idle | None:
        """Return the connection that waits for the shortest time, or None."""
        while True:
            with self._lock:
                waiting = self._idle.get(key)
                if not waiting:
                    return None
                found = waiting.pop()
                self._count -= 1
                if not waiting:
                    del self._idle[key]
            if time.monotonic() - found.since < self.seconds:
                return found
            found.connection.close()

    def give(self, key: Key, connection: http.client.HTTPConnection, private: bool) -> None:
        """Keep a connection whose answer was read to its end, unless there are many."""
        unwanted = connection
        with self._lock:
            waiting = self._idle.setdefault(key, [])
            waiting.append(Idle(connection, private, time.monotonic()))
            self._count += 1
            if len(waiting) > _MOST_PER_HOST:
                unwanted = waiting.pop(0).connection
            elif self._count > _MOST:
                # The host that was first in the list: it has waited the longest, or nearly so.
                first = next(iter(self._idle))
                unwanted = self._idle[first].pop(0).connection
                if not self._idle[first]:
                    del self._idle[first]
            else:
                return
            self._count -= 1
        unwanted.close()
