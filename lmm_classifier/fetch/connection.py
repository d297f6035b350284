"""One request and its answer: the only file of the package that opens connections.

All of them go through `_Backend.connect_tcp`: there a name is looked up once, all that it stands for is
checked, and what was checked is connected to. Nothing is taken from the environment: no proxy, no netrc, no
cookies.
"""

from __future__ import annotations

import errno
import socket
import ssl
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from ipaddress import ip_address

import httpcore2

from lmm_classifier.errors import FetchError
from lmm_classifier.fetch.guard import Guard
from lmm_classifier.fetch.limits import FetchLimits
from lmm_classifier.fetch.url import Url

OK = 200
_OVERHEAD_BYTES = 64 * 2**10  # of an answer besides its body: headers, and how long each chunk is
_FEW_CHUNKS, _CHUNK_BYTES = 1000, 64  # of a stranger: beyond so many, chunks must be so long on average
_SAID_BYTES = 2048  # of an answer that refuses a POST: enough for the reason
_WRITE_BYTES = 16 * 2**10  # sent at a time: the clock is looked at before each
_NOT_OURS = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT})


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """What is asked of whom.

    Attributes:
        method: GET or POST.
        url: whom.
        headers: sent besides our own.
        body: of a POST.
        guard: whose rules bind it.
    """

    method: str
    url: Url
    headers: Mapping[str, str]
    body: bytes | None = None
    guard: Guard | None = None

    @property
    def name(self) -> str:
        """How messages call it: a stranger's path and query may hold a secret, which is none for the log."""
        return self.url.origin if self.guard else str(self.url)


@dataclass(frozen=True, slots=True)
class HttpResponse:
    """What came back.

    Attributes:
        status: of HTTP.
        body: whole at status 200; of another answer to a POST, the beginning; else empty.
        location: where a redirect points to.
        retry_after: seconds that the server wants to be left in peace.
    """

    status: int
    body: bytes
    location: str
    retry_after: float


class TransientError(FetchError):
    """A failure that a second try may not meet, `after` seconds from now at the earliest."""

    after = 0.0


@dataclass(frozen=True, slots=True)
class Clock:
    """When everything must be over, on `time.monotonic`."""

    deadline: float

    def left(self) -> float:
        return max(self.deadline - time.monotonic(), 0.0)

    def cut(self, timeout: float | None) -> float:
        """The shorter of a time limit and what is left."""
        if not (left := self.left()):
            raise httpcore2.ReadTimeout("the time is over")
        return left if timeout is None else min(timeout, left)


def exchange(request: HttpRequest, limits: FetchLimits, clock: Clock) -> HttpResponse:
    """What a server answers, whatever it is; no redirect is followed here.

    Raises:
        FetchError: the guard forbids to ask it, or the answer is too large or no picture.
        TransientError: there is no whole answer in time.
    """
    url, guard = request.url, request.guard
    timeouts = {"connect": limits.connect_s, "read": limits.silence_s, "write": limits.silence_s}
    sent = {
        "Host": url.authority,
        "User-Agent": "lmm-classifier",
        "Accept-Encoding": "identity",
        **request.headers,
    }
    allowance = _Allowance()
    try:
        if guard:
            guard.check_url(url)
        with (
            httpcore2.ConnectionPool(network_backend=_Backend(clock, guard, allowance)) as pool,
            pool.stream(
                request.method,
                httpcore2.URL(scheme=url.scheme, host=url.host, port=url.port, target=url.target),
                headers=list(sent.items()),
                content=request.body,
                extensions={"timeout": timeouts},
            ) as answer,
        ):
            allowance.add_body(limits.max_bytes)
            return _received(answer, request, limits)
    except _TooManyBytesError as error:
        message = f"{request.name}: the answer has more than {limits.max_bytes} bytes"
        raise FetchError("too_large", message) from error
    except httpcore2.TimeoutException as error:
        raise TransientError("timeout", f"{request.name}: no whole answer in time") from error
    except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
        kind = type(error).__name__
        raise TransientError("unreachable", f"{request.name}: no whole answer ({kind})") from error


class _TooManyBytesError(Exception):
    """More than is wanted."""


class _Allowance:
    """How many bytes may still be received, whatever they are: first those of headers, then a body's too."""

    def __init__(self) -> None:
        self._left = _OVERHEAD_BYTES
        self._in_body = False

    def add_body(self, size: int) -> None:
        self._left += size
        self._in_body = True

    def left(self) -> int:
        if self._left:
            return self._left
        raise _TooManyBytesError if self._in_body else httpcore2.RemoteProtocolError("headers without end")

    def spend(self, size: int) -> None:
        self._left -= size


def _received(answer: httpcore2.Response, request: HttpRequest, limits: FetchLimits) -> HttpResponse:
    told = {key.lower(): value.decode("utf-8", "replace") for key, value in answer.headers}
    body = b""
    if answer.status == OK:
        if request.guard:
            request.guard.check_type(told.get(b"content-type", ""))
        length = told.get(b"content-length", "0")
        if length.isdigit() and int(length) > limits.max_bytes:
            raise _TooManyBytesError
        stream = _whole_chunks(answer.iter_stream()) if request.guard else answer.iter_stream()
        body = _read(stream, limits.max_bytes + 1)
        if len(body) > limits.max_bytes:
            raise _TooManyBytesError
    elif request.body is not None:
        body = _read(answer.iter_stream(), _SAID_BYTES)
    wait = told.get(b"retry-after", "")
    after = float(wait) if wait.isascii() and wait.isdigit() else 0.0
    return HttpResponse(answer.status, body, told.get(b"location", ""), after)


def _read(stream: Iterable[bytes], most: int) -> bytes:
    """The beginning of a stream, which is left where that ends."""
    body = bytearray()
    for chunk in stream:
        body += chunk
        if len(body) >= most:
            break
    del body[most:]
    return bytes(body)


def _whole_chunks(stream: Iterable[bytes]) -> Iterator[bytes]:
    """The chunks, unless they are so small that reading them is all work and no picture."""
    size = 0
    for number, chunk in enumerate(stream):
        size += len(chunk)
        if number > _FEW_CHUNKS + size // _CHUNK_BYTES:
            raise httpcore2.RemoteProtocolError("too many tiny chunks")
        yield chunk


class _Backend(httpcore2.NetworkBackend):
    """Where connections are made; no read or write outlasts the clock."""

    def __init__(self, clock: Clock, guard: Guard | None, allowance: _Allowance) -> None:
        self._clock, self._guard, self._allowance = clock, guard, allowance

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        within = Clock(time.monotonic() + self._clock.cut(timeout))
        addresses = _addresses(host, port, within)
        if self._guard:
            self._guard.check_addresses(host, addresses)
            _check_foreign(host, addresses)
        for ahead in reversed(range(len(addresses))):
            address = addresses[-1 - ahead]
            try:  # each gets its share of the time: the first may lead nowhere
                stream = httpcore2.SyncBackend().connect_tcp(
                    address, port, within.left() / (ahead + 1), local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                if not ahead:
                    raise
                continue
            if self._guard:
                _check_peer(stream, address)
            return _PinnedStream(stream, self._clock, within, self._allowance)
        raise httpcore2.ConnectError(f"{host} has no address")


def _addresses(host: str, port: int, clock: Clock) -> list[str]:
    """What a name stands for, best first. In a thread: the system's resolver takes no time limit."""
    found: Future[list[str]] = Future()

    def look_up() -> None:
        try:
            entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found.set_result(list(dict.fromkeys(str(address[0]) for *_, address in entries)))
        except (OSError, UnicodeError) as error:  # the latter of a name that is too long
            found.set_exception(error)

    try:
        threading.Thread(target=look_up, daemon=True, name="look-up").start()
        return found.result(clock.left())
    except TimeoutError as error:
        raise httpcore2.ConnectTimeout(f"{host} was not looked up in time") from error
    except (OSError, UnicodeError, RuntimeError) as error:  # the last where there are too many threads
        raise httpcore2.ConnectError(f"{host} cannot be looked up") from error


def _check_foreign(host: str, addresses: Iterable[str]) -> None:
    """Raises a FetchError if a name stands for this machine: for an address that it can listen at.

    Where it could listen at anybody's (`ip_nonlocal_bind`, or no network at all) this says nothing; then
    `_check_peer` is what notices.
    """
    for address in addresses:
        nobodys = "2001:db8::1" if ":" in address else "192.0.2.1"  # of documentation
        if _can_listen(address) and not _can_listen(nobodys):
            raise FetchError("unreachable", f"{host}: {address} is this machine's own")


def _can_listen(address: str) -> bool:
    try:
        with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as ours:
            ours.bind((address, 0))
    except OSError as error:
        if error.errno in _NOT_OURS:
            return False
        raise FetchError("unreachable", f"is {address} this machine? {error}") from error
    return True


def _check_peer(stream: httpcore2.NetworkStream, address: str) -> None:
    """Raises a FetchError, and hangs up, unless what was asked answers, and from elsewhere than here."""
    try:
        peer, here = (str(stream.get_extra_info(f"{end}_addr")[0]) for end in ("server", "client"))
    except OSError:  # gone already
        peer = here = "nobody"
    if peer == here or ip_address(peer) != ip_address(address):
        stream.close()
        raise FetchError("unreachable", f"{address} was asked from {here}, and {peer} answers")


class _PinnedStream(httpcore2.NetworkStream):
    """A connection that ends with the clock, and when more is received than is allowed."""

    def __init__(
        self, stream: httpcore2.NetworkStream, clock: Clock, connecting: Clock, allowance: _Allowance
    ) -> None:
        self._stream, self._clock, self._connecting, self._allowance = stream, clock, connecting, allowance

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        received = self._stream.read(min(max_bytes, self._allowance.left()), self._clock.cut(timeout))
        self._allowance.spend(len(received))
        return received

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), _WRITE_BYTES):
            self._stream.write(buffer[start : start + _WRITE_BYTES], self._clock.cut(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore2.NetworkStream:
        secured = self._stream.start_tls(ssl_context, server_hostname, self._connecting.cut(timeout))
        return _PinnedStream(secured, self._clock, self._connecting, self._allowance)

    def get_extra_info(self, info: str) -> object:
        return self._stream.get_extra_info(info)
