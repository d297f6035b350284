"""Fetching a URL: the only file of the package that opens a connection to an address somebody gave it.

Whatever comes to guard such connections belongs into `_Backend.connect_tcp`, through which every one of
them goes, redirects included. Nothing is taken from the environment: no proxy, no netrc, no cookies.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from urllib.parse import SplitResult, urljoin, urlsplit

import httpcore2

from lmm_classifier.errors import FetchError

AGAIN = frozenset({429, 500, 502, 503, 504})  # answers that a second try may improve
REDIRECTS = frozenset({301, 302, 303, 307, 308})
LONGEST_URL = 2048
OK = 200


@dataclass(frozen=True, slots=True)
class FetchLimits:
    """What one fetch may cost.

    Attributes:
        connect_s: seconds until a connection stands.
        silence_s: seconds without a byte.
        total_s: seconds for everything: all tries, waits and redirects.
        max_bytes: of the answer.
        tries: how often at most, after no answer, a broken one, or one of `AGAIN`.
        wait_s: seconds before the second try; twice as long before each further one.
        redirects: how many are followed.
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
    clock = _Clock(time.monotonic() + limits.total_s)
    wait = limits.wait_s
    for left in reversed(range(limits.tries)):
        try:
            return _followed(url, limits, headers or {}, clock)
        except _Transient as error:
            if not left or clock.left() <= wait:
                raise FetchError(error.code, error.message) from error
        time.sleep(wait)
        wait *= 2
    raise ValueError(f"tries must be at least 1, got {limits.tries}")


class _Transient(FetchError):
    """A failure that a second try may not meet."""


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


def _followed(url: str, limits: FetchLimits, headers: Mapping[str, str], clock: _Clock) -> bytes:
    first = _checked(url)
    here = first
    for _ in range(limits.redirects + 1):
        at_home = (here.scheme, here.netloc) == (first.scheme, first.netloc)
        status, body, location = _once(here.geturl(), limits, headers if at_home else {}, clock)
        if status == OK:
            return body
        if status not in REDIRECTS:
            kind = _Transient if status in AGAIN else FetchError
            raise kind("bad_status", f"{url}: the server answers {status}")
        there = _checked(urljoin(here.geturl(), location))
        if not location or (here.scheme, there.scheme) == ("https", "http"):
            raise FetchError("redirected", f"{url}: redirected to {location!r}, which is not followed")
        here = there
    raise FetchError("redirected", f"{url}: redirected more than {limits.redirects} times")


def _once(url: str, limits: FetchLimits, headers: Mapping[str, str], clock: _Clock) -> tuple[int, bytes, str]:
    """Status, body (of status 200) and location of one answer."""
    timeouts = {"connect": limits.connect_s, "read": limits.silence_s, "write": limits.silence_s}
    sent = {"Host": urlsplit(url).netloc, "Accept-Encoding": "identity", **headers}
    too_large = FetchError("too_large", f"{url}: the answer has more than {limits.max_bytes} bytes")
    try:
        with (
            httpcore2.ConnectionPool(network_backend=_Backend(clock)) as pool,
            pool.stream("GET", url, headers=list(sent.items()), extensions={"timeout": timeouts}) as answer,
        ):
            told = {key.lower(): value for key, value in answer.headers}
            if answer.status != OK:
                return answer.status, b"", told.get(b"location", b"").decode("latin-1")
            length = told.get(b"content-length", b"0")
            if length.isdigit() and int(length) > limits.max_bytes:
                raise too_large
            body = bytearray()
            for chunk in answer.iter_stream():
                body += chunk
                if len(body) > limits.max_bytes:
                    raise too_large
            return OK, bytes(body), ""
    except httpcore2.TimeoutException as error:
        raise _Transient("timeout", f"{url}: no whole answer in time") from error
    except (httpcore2.NetworkError, httpcore2.ProtocolError) as error:
        raise _Transient("unreachable", f"{url}: no whole answer ({type(error).__name__})") from error


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
        stream = httpcore2.SyncBackend().connect_tcp(
            host, port, self._clock.cut(timeout), local_address, socket_options
        )
        return _Stream(stream, self._clock)


class _Stream(httpcore2.NetworkStream):
    def __init__(self, stream: httpcore2.NetworkStream, clock: _Clock) -> None:
        self._stream, self._clock = stream, clock

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, self._clock.cut(timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, self._clock.cut(timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(self, *arguments: object, **options: object) -> httpcore2.NetworkStream:
        return _Stream(self._stream.start_tls(*arguments, **options), self._clock)  # type: ignore[arg-type]

    def get_extra_info(self, info: str) -> object:
        return self._stream.get_extra_info(info)
