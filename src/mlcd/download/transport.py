"""Transfers with an end: urllib's opener with limits that img2dataset's `timeout` does not give.

A time-out of a socket bounds one wait; a server that sends a byte every few seconds never meets
it. Here the whole response, headers included, has a time and a number of bytes, and everything
stops when the chunk's time is over. One TLS context serves all transfers of a process; urllib
builds one for each request, which costs 20 to 50 ms of processor time. Only http and https exist
in this opener, so that neither a list nor a redirect can name a file or an FTP server.
"""

from __future__ import annotations

import functools
import http.client
import io
import socket
import ssl
import time
import urllib.request
from dataclasses import dataclass
from typing import Any
from urllib.error import URLError

from mlcd.download.reasons import OWN


@dataclass(frozen=True)
class Limits:
    """`seconds` and `bytes` of one response; `until`: the chunk's end on the monotonic clock."""

    seconds: float
    bytes: int
    until: float


class _BoundedSocket(io.RawIOBase):
    """The bytes of one response: reading raises once the limits are met."""

    def __init__(self, raw: io.RawIOBase, connection: socket.socket, limits: Limits) -> None:
        self._raw = raw
        self._socket = connection
        self._limits = limits
        self._wait = connection.gettimeout()
        self._end = time.monotonic() + limits.seconds
        self._count = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        left = self._left()
        self._socket.settimeout(left if self._wait is None else min(self._wait, left))
        try:
            count = self._raw.readinto(buffer)
        except TimeoutError:
            self._left()
            raise
        self._count += count or 0
        if self._count > self._limits.bytes:
            raise ValueError(f"{OWN}too_large")
        return count

    def _left(self) -> float:
        """Return the seconds that are left, or raise with the limit that is met."""
        now = time.monotonic()
        if now >= self._limits.until:
            raise TimeoutError(f"{OWN}deadline")
        if now >= self._end:
            raise TimeoutError(f"{OWN}timeout after {self._limits.seconds:g} s in all")
        return min(self._end, self._limits.until) - now

    def close(self) -> None:
        self._raw.close()
        super().close()


class _Response(http.client.HTTPResponse):
    """A response whose status line, headers and body are read through :class:`_BoundedSocket`."""

    def __init__(self, sock: socket.socket, *args: Any, limits: Limits, **kwargs: Any) -> None:
        super().__init__(sock, *args, **kwargs)
        self.fp = io.BufferedReader(_BoundedSocket(self.fp.detach(), sock, limits))
        self._limits = limits

    def begin(self) -> None:
        super().begin()
        if (self.length or 0) > self._limits.bytes:
            raise ValueError(f"{OWN}too_large")


class _Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Open http and https through :class:`_Response`, with one TLS context for all."""

    def __init__(self, limits: Limits) -> None:
        urllib.request.HTTPSHandler.__init__(self, context=ssl.create_default_context())
        self._limits = limits
        # http.client makes responses by this attribute of a connection's class.
        factory = {"response_class": functools.partial(_Response, limits=limits)}
        self._plain = type("Plain", (http.client.HTTPConnection,), factory)
        self._secure = type("Secure", (http.client.HTTPSConnection,), factory)

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        self._check_time()
        return self.do_open(self._plain, request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        self._check_time()
        return self.do_open(self._secure, request, context=self._context)

    def _check_time(self) -> None:
        if time.monotonic() >= self._limits.until:
            raise URLError(f"{OWN}deadline")


def install(limits: Limits) -> None:
    """Make every `urllib.request.urlopen` of this process, img2dataset's among them, obey limits.

    Proxies of the environment are used as ever. `limits` hold for each hop of a redirect; urllib
    follows at most 10.
    """
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        _Handler(limits),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    urllib.request.install_opener(opener)
