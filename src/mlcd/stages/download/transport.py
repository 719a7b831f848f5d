"""Transfers with an end: urllib's opener with limits that img2dataset's `timeout` does not give.

A time-out of a socket bounds one wait; a server that sends a byte every few seconds never meets
it. Here the whole response, headers included, has a time and a number of bytes, and everything
stops when the chunk's time is over. One TLS context serves all transfers of a process; urllib
builds one for each request, which costs 20 to 50 ms of processor time. Only http and https exist
in this opener, so that neither a list nor a redirect can name a file or an FTP server.

A body sent compressed, though nobody asked for that, is unpacked within the same number of bytes.
Whether private addresses may be asked is decided on the address itself, after the name is resolved
and before a connection is made; behind a proxy of the environment, which resolves names itself, on
addresses written as numbers alone.

A host has its limits too (:mod:`.hosts`): requests at a time, and the pause that it asks for by
Retry-After, after which the request is made again. Connections stay open for the next request to
the same host (:mod:`.connections`), but for those through a proxy.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import io
import socket
import ssl
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address
from typing import IO, Any, Literal, cast
from urllib.error import URLError
from urllib.parse import urlsplit

from mlcd.stages.download.connections import Pool, exchange
from mlcd.stages.download.hosts import Hosts
from mlcd.stages.download.reasons import OWN

#: Addresses that stand for an IPv4 address behind a translator (RFC 6052).
_NAT64 = IPv6Network("64:ff9b::/96")
#: Answers with which a server may ask for a pause, and the longest page of an error that is read.
_PAUSES = (429, 503)
_ERROR_PAGE = 65_536
_PACKED = ("gzip", "x-gzip", "deflate")


@dataclass(frozen=True)
class Limits:
    """`seconds` and `bytes` of one response; `until`: the chunk's end on the monotonic clock.

    `private_addresses` as in the config: `allow`, `listed` or `refuse`. `keep_alive`: seconds that
    a connection waits open for the next request, 0 for none.
    """

    seconds: float
    bytes: int
    until: float
    private_addresses: Literal["allow", "listed", "refuse"] = "allow"
    keep_alive: float = 0.0


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
        #: Called once, when the answer is read or given up, with whether its connection is as new.
        self.finish: Callable[[bool], None] | None = None

    def _close_conn(self) -> None:
        # http.client's, at the end of the body; also when it is closed before.
        super()._close_conn()  # type: ignore[misc]
        self._finished(not self.will_close)

    def close(self) -> None:
        if not self.isclosed():
            finish, self.finish = self.finish, None
            super().close()
            if finish:
                finish(False)
        super().close()
        self._finished(False)

    def _finished(self, whole: bool) -> None:
        finish, self.finish = self.finish, None
        if finish:
            finish(whole)

    def begin(self) -> None:
        super().begin()
        if (self.length or 0) > self._limits.bytes:
            raise ValueError(f"{OWN}too_large")

    def read(self, amt: int | None = None) -> bytes:
        """Read the body; all of it at once is unpacked, as img2dataset asks for it."""
        data = super().read(amt)
        coding = (self.getheader("Content-Encoding") or "").strip().lower()
        return unpacked(data, self._limits.bytes) if amt is None and coding in _PACKED else data


def unpacked(data: bytes, limit: int) -> bytes:
    """Return a gzip or zlib body unpacked; as it is if it is neither, as some servers send it.

    Raises ValueError with our reason if it is cut off or gives more than `limit` bytes.
    """
    if data[:2] != b"\x1f\x8b" and not (data[:1] == b"x" and int.from_bytes(data[:2]) % 31 == 0):
        return data
    unpacker = zlib.decompressobj(wbits=47)
    try:
        found = unpacker.decompress(data, limit + 1)
    except zlib.error:
        raise ValueError(f"{OWN}damaged") from None
    if len(found) > limit:
        raise ValueError(f"{OWN}too_large")
    if not unpacker.eof:
        raise ValueError(f"{OWN}damaged")
    return found


def is_private(address: str) -> bool:
    """True unless an IP address is one of the public internet's."""
    found: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    if isinstance(found, IPv6Address):
        inner = found.ipv4_mapped or found.sixtofour
        if found in _NAT64:
            inner = IPv4Address(int(found) & 0xFFFFFFFF)
        found = inner or found
    return not found.is_global or found.is_multicast


class _Connector:
    """Makes the connections of one request, to addresses that it may ask."""

    def __init__(self, request: urllib.request.Request, limits: Limits, hosts: Hosts) -> None:
        mode = limits.private_addresses
        #: Whether a redirect led here, from where private addresses must not be asked.
        from_public = getattr(request, "from_public", False)
        self._refused = mode == "refuse" or (mode == "listed" and from_public)
        self._request = request
        self._hosts = hosts
        self.private = False
        self.proxied = request.has_proxy() or getattr(request, "_tunnel_host", None) is not None

    def __call__(self, address: tuple[str, int], *arguments: Any, **options: Any) -> socket.socket:
        host, port = address
        if self.proxied:
            # urllib has put the proxy in the host's place.
            self._judge([asked_host(self._request)])
            return socket.create_connection(address, *arguments, **options)
        addresses = self._hosts.addresses(host, port)
        self._judge(addresses)
        # Those that were judged, and not the name: it may mean another a moment later.
        problem: OSError = OSError("getaddrinfo gives no address")
        for one in addresses:
            try:
                return socket.create_connection((one, port), *arguments, **options)
            except OSError as error:
                problem = error
        raise problem

    def _judge(self, addresses: list[str]) -> None:
        private = False
        for address in addresses:
            try:
                private = private or is_private(address)
            except ValueError:  # a name, which a proxy resolves
                continue
        self.judge(private)

    def judge(self, private: bool) -> None:
        """Refuse a private address where the request must not ask one."""
        self.private = private
        self._request.to_public = not private  # type: ignore[attr-defined]
        if private and self._refused:
            raise ValueError(f"{OWN}private_address")


def asked_host(request: urllib.request.Request) -> str:
    """Return the host of a request's URL; behind a proxy, `request.host` is the proxy's."""
    return urlsplit(request.full_url).hostname or ""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Remembers that a redirect came from a public address."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        new = super().redirect_request(req, fp, code, msg, headers, newurl)
        if new is not None:
            came = getattr(req, "from_public", False) or getattr(req, "to_public", True)
            new.from_public = came  # type: ignore[attr-defined]
        return new


class _Connected:
    """Connections that a :class:`_Connector` makes."""

    def __init__(self, *arguments: Any, connector: _Connector, **options: Any) -> None:
        super().__init__(*arguments, **options)
        # http.client makes connections by this attribute.
        self._create_connection = connector


class _Handler(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """Open http and https through :class:`_Response`, with one TLS context for all."""

    def __init__(self, limits: Limits, hosts: Hosts) -> None:
        self._tls = ssl.create_default_context()
        urllib.request.HTTPSHandler.__init__(self, context=self._tls)
        self._limits = limits
        self._hosts = hosts
        self._pool = Pool(limits.keep_alive)
        # http.client makes responses by this attribute of a connection's class.
        factory = {"response_class": functools.partial(_Response, limits=limits)}
        self._plain = cast(
            type[http.client.HTTPConnection],
            type("Plain", (_Connected, http.client.HTTPConnection), factory),
        )
        self._secure = cast(
            type[http.client.HTTPSConnection],
            type("Secure", (_Connected, http.client.HTTPSConnection), factory),
        )

    def http_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self._ask(self._plain, request)

    def https_open(self, request: urllib.request.Request) -> http.client.HTTPResponse:
        return self._ask(self._secure, request, context=self._tls)

    def _ask(
        self, kind: Any, request: urllib.request.Request, **options: Any
    ) -> http.client.HTTPResponse:
        """Make a request when its host may have one; it has ended when the answer is closed."""
        self._check(request)
        release = self._hosts.enter(asked_host(request))
        connector = _Connector(request, self._limits, self._hosts)
        try:
            if not self._pool.seconds or connector.proxied:
                answer = self.do_open(kind, request, connector=connector, **options)
                cast(_Response, answer).finish = lambda _: release()
                return answer
            return self._over_kept(kind, request, connector, release, options)
        except BaseException:
            release()
            raise

    def _over_kept(
        self,
        kind: Any,
        request: urllib.request.Request,
        connector: _Connector,
        release: Callable[[], None],
        options: dict[str, Any],
    ) -> http.client.HTTPResponse:
        """Ask over a connection that waits, or a new one, and keep it if the server does."""
        host = request.host or ""
        key = (request.type or "", host)
        answer = None
        while answer is None and (idle := self._pool.take(key)):
            connection = idle.connection
            try:
                connector.judge(idle.private)
            except ValueError:
                connection.close()
                raise
            connection.sock.settimeout(request.timeout)
            # The server may have closed it meanwhile.
            with contextlib.suppress(ConnectionError, http.client.BadStatusLine):
                answer = cast(_Response, exchange(connection, request))
        if answer is None:
            connection = kind(host, timeout=request.timeout, connector=connector, **options)
            try:
                answer = cast(_Response, exchange(connection, request))
            except OSError as error:
                raise URLError(error) from None

        def finish(whole: bool) -> None:
            if whole:
                self._pool.give(key, connection, connector.private)
            else:
                connection.close()
            release()

        answer.finish = finish
        return answer

    def _check(self, request: urllib.request.Request) -> None:
        # http.client would look the password up as part of the host's name.
        if "@" in (request.host or ""):
            raise URLError(f"{OWN}credentials")
        if time.monotonic() >= self._limits.until:
            raise URLError(f"{OWN}deadline")


class _Errors(urllib.request.HTTPDefaultErrorHandler):
    """Ends an answer that is an error, and makes the request again after the pause it asks for."""

    def __init__(self, hosts: Hosts) -> None:
        self._hosts = hosts

    def http_error_default(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        hdrs: http.client.HTTPMessage,
    ) -> Any:
        answer = cast(_Response, fp)
        # A short page of an error is read, so that its connection can be used again.
        if answer.length is not None and answer.length <= _ERROR_PAGE:
            with contextlib.suppress(OSError, ValueError, http.client.HTTPException):
                answer.read()
        answer.close()
        if code in _PAUSES:
            pause = self._hosts.pause(asked_host(req), hdrs.get("Retry-After"))
            waited: float = getattr(req, "waited", 0.0)
            # Even a pause of no seconds ends: each counts as one.
            if pause is not None and waited + max(1.0, pause) <= self._hosts.patience:
                req.waited = waited + max(1.0, pause)  # type: ignore[attr-defined]
                return self.parent.open(req, timeout=req.timeout)
        raise urllib.error.HTTPError(req.full_url, code, msg, hdrs, None)


def install(limits: Limits, hosts: Hosts | None = None) -> None:
    """Make every `urllib.request.urlopen` of this process, img2dataset's among them, obey limits.

    Proxies of the environment are used as ever. `limits` hold for each hop of a redirect; urllib
    follows at most 10. `hosts`: what is known of those that are asked, nothing by default.
    """
    hosts = hosts or Hosts(0, 0.0, 0.0, limits.until)
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler(),
        urllib.request.UnknownHandler(),
        _Handler(limits, hosts),
        _Errors(hosts),
        _Redirects(),
        urllib.request.HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    urllib.request.install_opener(opener)
