"""Fetching a URL: the only file of the package that opens a connection to an address somebody gave it.

Whatever comes to guard such connections belongs into `_Backend.connect_tcp`, through which every one of
them goes, redirects included. Nothing is taken from the environment: no proxy, no netrc, no cookies.
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, urljoin, urlsplit

import httpcore2

from lmm_classifier.errors import FetchError

AGAIN = frozenset({429, 500, 502, 503, 504})  # answers that a second try may improve
REDIRECTS = frozenset({301, 302, 303, 307, 308})
LONGEST_URL = 2048
OK = 200
SAID_BYTES = 2048  # of an answer that refuses a POST: enough for the reason
WRITE_BYTES = 16 * 2**10  # sent at a time: the clock is looked at before each


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """What one fetch may cost.

    Attributes:
        connect_s: seconds until a name is looked up and a connection stands.
        silence_s: seconds without a byte.
        total_s: seconds for everything: all tries, waits and redirects.
        max_bytes: of the answer.
        tries: how often at most, after no answer, a broken one, or one of `AGAIN`.
        wait_s: seconds before the second try; twice as long before each further one, and longer where the
            server says so (Retry-After, in seconds).
        redirects: how many are followed; none after a POST.
    """

    connect_s: float = 3.0
    silence_s: float = 10.0
    total_s: float = 60.0
    max_bytes: int = 256 * 2**20
    tries: int = 3
    wait_s: float = 0.5
    redirects: int = 3


DEFAULT_LIMITS = FetchLimits()


def fetch(
    url: str, *, limits: FetchLimits = DEFAULT_LIMITS, headers: Mapping[str, str] | None = None
) -> bytes:
    """The body of the answer to a GET.

    Args:
        url: http or https, without user name.
        limits: what it may cost.
        headers: sent to the host of `url` alone: a redirect to another one goes without them.

    Raises:
        FetchError: it is no such URL, or there was no whole answer of status 200 within the limits.
    """
    return _insisted(_Request("GET", url, headers or {}), limits)


def post_json(
    url: str, value: Any, *, limits: FetchLimits = DEFAULT_LIMITS, headers: Mapping[str, str] | None = None
) -> bytes:
    """The body of the answer to a POST of a value as JSON; takes and raises what `fetch` does.

    A redirect is not followed: what is posted is meant for this address.
    """
    body = json.dumps(value, allow_nan=False).encode()
    return _insisted(
        _Request("POST", url, {"Content-Type": "application/json", **(headers or {})}, body), limits
    )


def check_url(url: str) -> None:
    """Whether a URL is one that `fetch` takes; nothing is opened.

    Raises:
        FetchError: it is not.
    """
    _checked(url)


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes | None = None


@dataclass(frozen=True, slots=True)
class _Answer:
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


class _Transient(FetchError):
    """A failure that a second try may not meet, `after` seconds from now at the earliest."""

    after = 0.0


@dataclass(frozen=True, slots=True)
class _Clock:
    """When everything must be over, on `time.monotonic`."""

    deadline: float

    def left(self) -> float:
        return max(self.deadline - time.monotonic(), 0.0)

    def cut(self, timeout: float | None) -> float:
        """The shorter of a time limit and what is left."""
        if not (left := self.left()):
            raise httpcore2.ReadTimeout("the time for the whole fetch is over")
        return left if timeout is None else min(timeout, left)


def _insisted(request: _Request, limits: FetchLimits) -> bytes:
    clock = _Clock(time.monotonic() + limits.total_s)
    wait = limits.wait_s
    for left in reversed(range(limits.tries)):
        try:
            return _followed(request, limits, clock)
        except _Transient as error:
            pause = max(wait, error.after)
            if not left or clock.left() <= pause:
                raise FetchError(error.code, error.message, error.status, error.said) from error
        time.sleep(pause)
        wait *= 2
    raise ValueError(f"tries must be at least 1, got {limits.tries}")


def _followed(request: _Request, limits: FetchLimits, clock: _Clock) -> bytes:
    url = request.url
    first = _checked(url)
    here = first
    for _ in range(limits.redirects + 1):
        at_home = (here.scheme, here.netloc) == (first.scheme, first.netloc)
        answer = _once(here.geturl(), request, request.headers if at_home else {}, limits, clock)
        if answer.status == OK:
            return answer.body
        if answer.status not in REDIRECTS:
            raise _bad_status(url, answer)
        there = _checked(urljoin(here.geturl(), answer.location))
        downgraded = (here.scheme, there.scheme) == ("https", "http")
        if not answer.location or downgraded or request.body is not None:
            raise FetchError("redirected", f"{url}: redirected to {answer.location!r}, which is not followed")
        here = there
    raise FetchError("redirected", f"{url}: redirected more than {limits.redirects} times")


def _bad_status(url: str, answer: _Answer) -> FetchError:
    kind = _Transient if answer.status in AGAIN else FetchError
    said = answer.body.decode("utf-8", "replace")
    error = kind("bad_status", f"{url}: the server answers {answer.status}", answer.status, said)
    if isinstance(error, _Transient):
        error.after = answer.retry_after
    return error


def _once(
    url: str, request: _Request, headers: Mapping[str, str], limits: FetchLimits, clock: _Clock
) -> _Answer:
    """One request, one answer."""
    timeouts = {"connect": limits.connect_s, "read": limits.silence_s, "write": limits.silence_s}
    sent = {"Host": urlsplit(url).netloc, "Accept-Encoding": "identity", **headers}
    try:
        with (
            httpcore2.ConnectionPool(network_backend=_Backend(clock)) as pool,
            pool.stream(
                request.method,
                url,
                headers=list(sent.items()),
                content=request.body,
                extensions={"timeout": timeouts},
            ) as answer,
        ):
            told = {key.lower(): value.decode("latin-1") for key, value in answer.headers}
            body = b""
            if answer.status == OK:
                length = told.get(b"content-length", "0")
                if length.isdigit() and int(length) > limits.max_bytes:
                    raise _too_large(url, limits)
                body = _read(answer.iter_stream(), limits.max_bytes + 1)
                if len(body) > limits.max_bytes:
                    raise _too_large(url, limits)
            elif request.body is not None:
                body = _read(answer.iter_stream(), SAID_BYTES)
            wait = told.get(b"retry-after", "")
            after = float(wait) if wait.isascii() and wait.isdigit() else 0.0
            return _Answer(answer.status, body, told.get(b"location", ""), after)
    except httpcore2.TimeoutException as error:
        raise _Transient("timeout", f"{url}: no whole answer in time") from error
    except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
        raise _Transient("unreachable", f"{url}: no whole answer ({type(error).__name__})") from error


def _too_large(url: str, limits: FetchLimits) -> FetchError:
    return FetchError("too_large", f"{url}: the answer has more than {limits.max_bytes} bytes")


def _read(stream: Iterable[bytes], most: int) -> bytes:
    """The beginning of a stream, which is left where that ends."""
    body = bytearray()
    for chunk in stream:
        body += chunk
        if len(body) >= most:
            break
    return bytes(body[:most])


def _checked(url: str) -> SplitResult:
    """The parts of a URL that everyone reads alike."""
    problem = ""
    if len(url) > LONGEST_URL or not url.isascii() or any(c <= " " or c in "\\\x7f" for c in url):
        problem = f"it must be at most {LONGEST_URL} printable ASCII characters without blanks or backslashes"
    try:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            problem = problem or "it must start with http:// or https:// and name a host"
        if "@" in parts.netloc or "%" in parts.netloc:
            problem = problem or "it must not hold a user name or an escaped host"
        if parts.port == 0:
            problem = problem or "it has no valid port"
    except ValueError as error:
        raise FetchError("bad_url", f"a URL cannot be read: {error}") from error
    if problem:
        raise FetchError("bad_url", f"{url[:200]!r} is no URL to fetch: {problem}")
    return parts._replace(fragment="")


class _Backend(httpcore2.NetworkBackend):
    """Where connections are made; no read or write outlasts the clock."""

    def __init__(self, clock: _Clock) -> None:
        self._clock = clock

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[httpcore2.SOCKET_OPTION] | None = None,
    ) -> httpcore2.NetworkStream:
        within = _Clock(time.monotonic() + self._clock.cut(timeout))
        addresses = _addresses(host, port, within)
        for ahead in reversed(range(len(addresses))):
            try:  # each gets its share of the time: the first may lead nowhere
                stream = httpcore2.SyncBackend().connect_tcp(
                    addresses[-1 - ahead], port, within.left() / (ahead + 1), local_address, socket_options
                )
                return _Stream(stream, self._clock)
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout):
                if not ahead:
                    raise
        raise httpcore2.ConnectError(f"{host} has no address")


def _addresses(host: str, port: int, clock: _Clock) -> list[str]:
    """What a name stands for, best first. In a thread: the system's resolver takes no time limit."""
    found: Future[list[str]] = Future()

    def look_up() -> None:
        try:
            entries = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found.set_result(list(dict.fromkeys(str(address[0]) for *_, address in entries)))
        except (OSError, UnicodeError) as error:  # the latter of a name that is too long
            found.set_exception(error)

    threading.Thread(target=look_up, daemon=True, name="look-up").start()
    try:
        return found.result(clock.left())
    except TimeoutError as error:
        raise httpcore2.ConnectTimeout(f"{host} was not looked up in time") from error
    except (OSError, UnicodeError) as error:
        raise httpcore2.ConnectError(f"{host} cannot be looked up") from error


class _Stream(httpcore2.NetworkStream):
    def __init__(self, stream: httpcore2.NetworkStream, clock: _Clock) -> None:
        self._stream, self._clock = stream, clock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._clock.cut(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        for start in range(0, len(buffer), WRITE_BYTES):
            self._stream.write(buffer[start : start + WRITE_BYTES], self._clock.cut(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(self, *arguments: object, **options: object) -> httpcore2.NetworkStream:
        return _Stream(self._stream.start_tls(*arguments, **options), self._clock)  # type: ignore[arg-type]

    def get_extra_info(self, info: str) -> object:
        return self._stream.get_extra_info(info)
