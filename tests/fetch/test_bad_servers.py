"""Servers of pictures that do all they can to cost time, memory or an error of another kind."""

from __future__ import annotations

import gzip
import itertools
import logging
import re
import shutil
import socket
import socketserver
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from internet import PNG, certificate_for, internet
from lmm_classifier.corpus.images import open_image
from lmm_classifier.errors import FetchError, ImageError
from lmm_classifier.fetch import PICTURE_LIMITS, FetchLimits, Guard, fetch
from registries import reachable

QUICK = FetchLimits(connect_s=0.5, silence_s=0.4, total_s=0.8, tries=1)
MEMORY = 64 * 2**20
Misdeed = Callable[[socket.socket], None]
NAMES = {"open.test": "93.184.215.14"}
OUT_OF_TIME = "no whole answer in time"


class Bad(socketserver.BaseRequestHandler):
    """Reads what is asked and then does what the test has put under "*"."""

    def handle(self) -> None:
        self.server.asked.append(self.request.recv(65536))
        self.server.pages["*"](self.request)


def head(status: str = "200 OK", *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status}", *headers, "", ""]).encode()


def sends(*parts: bytes) -> Misdeed:
    return lambda connection: [connection.sendall(part) for part in parts] and None


def endlessly(first: bytes, again: bytes) -> Misdeed:
    def send(connection: socket.socket) -> None:
        connection.sendall(first)
        for _ in itertools.count():
            connection.sendall(again)

    return send


def drips(first: bytes, each: bytes, every: float = 0.2) -> Misdeed:
    def send(connection: socket.socket) -> None:
        connection.sendall(first)
        for _ in range(round(15 / every)):
            connection.sendall(each)
            time.sleep(every)

    return send


def is_silent(connection: socket.socket) -> None:
    time.sleep(QUICK.total_s * 2)
    connection.settimeout(10)
    connection.recv(1)


def resets(connection: socket.socket) -> None:
    connection.sendall(head("200 OK", "Content-Length: 1000000") + PNG)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.close()


def second_time_better() -> Misdeed:
    answers = iter([head("200 OK", "Content-Length: 1000") + PNG, head("200 OK") + PNG])
    return lambda connection: connection.sendall(next(answers))


BOMB = gzip.compress(bytes(50_000_000))
SERVERS: dict[str, Misdeed] = {
    "endless body": endlessly(head(), b" " * 65536),
    "chunked without end": endlessly(
        head("200 OK", "Transfer-Encoding: chunked"), b"8000\r\n" + b" " * 32768 + b"\r\n"
    ),
    "tiny chunks without end": endlessly(
        head("200 OK", "Transfer-Encoding: chunked"), b"1\r\n \r\n" * 10_000
    ),
    "a length that is too short": sends(head("200 OK", "Content-Length: 20"), PNG),
    "a length that is too long": sends(head("200 OK", "Content-Length: 99999"), PNG),
    "a length that is huge": sends(head("200 OK", "Content-Length: 99999999999999"), PNG),
    "two lengths": sends(head("200 OK", "Content-Length: 3", f"Content-Length: {len(PNG)}"), PNG),
    "a gzip bomb": sends(
        head("200 OK", "Content-Type: image/png", "Content-Encoding: gzip", f"Content-Length: {len(BOMB)}"),
        BOMB,
    ),
    "HTML as image/png": sends(head("200 OK", "Content-Type: image/png"), b"<!doctype html><p>Hello"),
    "PNG as text/html": sends(head("200 OK", "Content-Type: text/html"), PNG),
    "SVG": sends(head("200 OK", "Content-Type: image/svg+xml"), b"<svg xmlns='http://www.w3.org/2000/svg'/>"),
    "204": sends(head("204 No Content")),
    "205": sends(head("205 Reset Content", "Content-Length: 0")),
    "206": sends(head("206 Partial Content", f"Content-Length: {len(PNG)}"), PNG),
    "304": sends(head("304 Not Modified", "Location: /a")),
    "a loop": sends(head("302 Found", "Location: /a", "Content-Length: 0")),
    "a redirect without Location": sends(head("302 Found", "Content-Length: 0")),
    "10,000 headers": sends(head("200 OK", *[f"X-{n}: {n}" for n in range(10_000)]), PNG),
    "a header of 1 MB": sends(head("200 OK", "X: " + "a" * 2**20), PNG),
    "headers without end": endlessly(head()[:-2], b"X: a\r\n" * 1000),
    "100 Continue without end": endlessly(b"", head("100 Continue") * 1000),
    "102 Processing without end": endlessly(b"", head("102 Processing", "X: " + "a" * 1000) * 100),
    "a trailer without end": endlessly(
        head("200 OK", "Transfer-Encoding: chunked") + b"0\r\n", b"X: a\r\n" * 1000
    ),
    "101": sends(head("101 Switching Protocols", "Upgrade: x", "Connection: upgrade"), PNG),
    "a reset in the body": resets,
    "nothing": sends(),
    "no HTTP": sends(b"\x00\x01\x02" * 1000),
    "HTTP/0.9": sends(PNG),
    "another body the second time": second_time_better(),
}
LONG: dict[str, Misdeed] = {
    "silence": is_silent,
    "one byte now and then": drips(head("200 OK", "Content-Length: 999"), b"a"),
    "headers now and then": drips(head()[:-2], b"X: a\r\n"),
    "a status line now and then": drips(b"HTTP/1.1 2", b"0"),
    "100 Continue now and then": drips(b"", head("100 Continue")),
}


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes each read of a socket gave, those of the servers' side left out."""
    sizes: list[int] = []
    real = socket.socket.recv

    def recv(connection: socket.socket, *arguments: int) -> bytes:
        received = real(connection, *arguments)
        if not sys._getframe(1).f_code.co_filename.endswith(Path(__file__).name):
            sizes.append(len(received))
        return received

    monkeypatch.setattr(socket.socket, "recv", recv)
    return sizes


def ends(url: str, limits: FetchLimits) -> str:
    """How a service sees it end: as an error of ours, for a picture it is in no case."""
    with pytest.raises((FetchError, ImageError)) as caught:
        open_image(fetch(url, guard=Guard(), limits=limits))
    return caught.value.code


@pytest.mark.parametrize("name", SERVERS)
def test_a_bad_server_costs_little_memory_and_transfer(
    name: str, counted: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    with internet(monkeypatch, NAMES, {"*": SERVERS[name]}, handler=Bad) as net:
        tracemalloc.start()
        try:
            before = tracemalloc.get_traced_memory()[0]
            code = ends("http://open.test/a", PICTURE_LIMITS)
            peak = tracemalloc.get_traced_memory()[1] - before
        finally:
            tracemalloc.stop()
        assert len(net.asked) == (4 if name == "a loop" else 1)
    assert code in ("image_url_not_fetchable", "too_large", "unsupported_format", "corrupt", "truncated")
    assert sum(counted) <= PICTURE_LIMITS.max_bytes + 64 * 2**10
    assert peak < MEMORY


@pytest.mark.timing
@pytest.mark.parametrize("name", SERVERS)
def test_a_bad_server_costs_little_time(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with internet(monkeypatch, NAMES, {"*": SERVERS[name]}, handler=Bad):
        started = time.monotonic()
        ends("http://open.test/a", PICTURE_LIMITS)
        assert time.monotonic() - started < 5  # of the 10 that it may cost


@pytest.mark.parametrize("name", LONG)
def test_a_slow_server_is_left_when_the_time_is_over(
    name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with internet(monkeypatch, NAMES, {"*": LONG[name]}, handler=Bad), caplog.at_level(logging.INFO):
        assert ends("http://open.test/a", QUICK) == "image_url_not_fetchable"
    assert OUT_OF_TIME in caplog.text


@pytest.mark.timing
@pytest.mark.parametrize("name", LONG)
def test_a_slow_server_is_left_half_a_second_after_the_time_at_most(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with internet(monkeypatch, NAMES, {"*": LONG[name]}, handler=Bad):
        started = time.monotonic()
        ends("http://open.test/a", QUICK)
        assert time.monotonic() - started < QUICK.total_s + 0.5


@pytest.mark.timing
@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_a_slow_server_is_left_within_the_time_of_every_day(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with internet(monkeypatch, NAMES, {"*": LONG[name]}, handler=Bad):
        started = time.monotonic()
        assert ends("http://open.test/a", PICTURE_LIMITS) == "image_url_not_fetchable"
        took = time.monotonic() - started
        assert took < (6 if name == "silence" else 11)


NO_TLS = {b"": OUT_OF_TIME, b"\x16": OUT_OF_TIME, b"HTTP/1.1 200 OK\r\n\r\n" + PNG: "(ConnectError)"}


@pytest.mark.parametrize("answer", NO_TLS)
def test_tls_that_never_stands_is_given_up(
    answer: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One byte now and then counts as silence: the time is that of the handshake."""
    with (
        internet(monkeypatch, NAMES, {"*": drips(b"", answer)}, handler=Bad),
        caplog.at_level(logging.INFO),
    ):
        assert ends("https://open.test/a", QUICK) == "image_url_not_fetchable"
    assert NO_TLS[answer] in caplog.text


@pytest.mark.timing
@pytest.mark.parametrize("answer", NO_TLS)
def test_tls_that_never_stands_is_given_up_half_a_second_after_the_time_at_most(
    answer: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    with internet(monkeypatch, NAMES, {"*": drips(b"", answer)}, handler=Bad):
        started = time.monotonic()
        ends("https://open.test/a", QUICK)
        assert time.monotonic() - started < QUICK.total_s + 0.5


def test_looking_up_connecting_and_tls_share_their_time(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[float] = []
    real = socket.socket.settimeout

    def settimeout(connection: socket.socket, seconds: float) -> None:
        given.append(seconds)
        real(connection, seconds)

    with internet(monkeypatch, NAMES, {"*": drips(b"", b"")}, handler=Bad):
        quick = socket.getaddrinfo

        def slow(host: str, *arguments: object, **options: object) -> object:
            time.sleep(0.5 if host == "open.test" else 0)
            return quick(host, *arguments, **options)  # type: ignore[arg-type]

        monkeypatch.setattr(socket, "getaddrinfo", slow)
        monkeypatch.setattr(socket.socket, "settimeout", settimeout)
        ends("https://open.test/a", FetchLimits(connect_s=1.5, tries=1))
    assert max(given) <= 1.001  # what looking up has left of it


def test_the_limits_of_every_day_are_as_documented() -> None:
    limits = PICTURE_LIMITS
    assert (limits.connect_s, limits.silence_s, limits.total_s) == (3, 5, 10)
    assert (limits.max_bytes, limits.tries, limits.redirects) == (25 * 2**20, 1, 3)
    assert Guard().ports == (80, 443, 8080, 8443)


def test_a_certificate_of_someone_is_no_certificate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    certificate = certificate_for(["open.test"], tmp_path)
    with internet(monkeypatch, NAMES, certificate=certificate) as net:
        assert ends("https://open.test/a", QUICK) == "image_url_not_fetchable"
    assert net.asked == []


def test_a_picture_of_just_the_size_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = PNG + bytes(100_000 - len(PNG))
    limits = FetchLimits(max_bytes=100_000, tries=1)
    for headers in ([f"Content-Length: {len(whole)}"], []):
        with internet(monkeypatch, NAMES, {"*": sends(head("200 OK", *headers), whole)}, handler=Bad):
            assert fetch("http://open.test/a", guard=Guard(), limits=limits) == whole
        with internet(monkeypatch, NAMES, {"*": sends(head(), whole, b" ")}, handler=Bad):
            assert ends("http://open.test/a", limits) == "too_large"


CHILD = """
import sys
import pytest
sys.path[:0] = sys.argv[1:]
from internet import Internet
from lmm_classifier.errors import FetchError
from lmm_classifier.fetch import FetchLimits, Guard, fetch
from test_guard import ALLOWED, NAMES, REFUSED, fresh
names = {name: [value.split()] if isinstance(value, str) else value for name, value in fresh(NAMES).items()}
Internet(names, None).name_service(pytest.MonkeyPatch())
for url in REFUSED + ALLOWED:
    try:
        fetch(url, guard=Guard(), limits=FetchLimits(tries=1, total_s=1))
    except FetchError:
        pass
print("done")
"""


@pytest.mark.slow
def test_the_kernel_sees_no_forbidden_connection(tmp_path: Path) -> None:
    """Every row with real sockets, where no network is: each attempt fails, and is written down."""
    if not (shutil.which("strace") and shutil.which("unshare")):
        pytest.skip("there is no strace or unshare")
    log = tmp_path / "log"
    watching = [
        "strace",
        "-f",
        "-qq",
        "-e",
        "trace=connect,sendto,sendmsg,sendmmsg",
        "-o",
        log,
        "unshare",
        "-n",
    ]
    if subprocess.run([*watching, "true"], capture_output=True, check=False).returncode:
        pytest.skip("strace or unshare may not be used here")
    here = Path(__file__).parent
    child = [sys.executable, "-c", CHILD, here, here.parent]
    result = subprocess.run([*watching, *child], capture_output=True, text=True, check=True)
    assert result.stdout == "done\n"
    seen = re.findall(r'inet_(?:addr\(|pton\(AF_INET6, )"([^"]+)"', log.read_text(encoding="utf-8"))
    assert len(seen) > 30
    assert [address for address in seen if not reachable(address)] == []
