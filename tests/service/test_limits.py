"""What a client may cost, against the command itself."""

from __future__ import annotations

import io
import json
import random
import select
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx2
import numpy as np
import pytest
from PIL import Image

from clock import wait_until
from served import Child, Served, as_tasks, assert_tells_nothing, child, classifier, encoded, serving
from synthetic import COLOURS, picture

LIMIT = 32 * 2**20
PHOTO = encoded(picture(COLOURS["red"], seed=1))


def answer_of(connection: socket.socket) -> bytes:
    """All that comes until the connection is closed, or reset: a server that refuses may do either."""
    parts = []
    with suppress(ConnectionResetError):
        while part := connection.recv(65536):
            parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("how", ["with its length", "in chunks", "with a false length"])
def test_300_megabytes_are_refused_before_they_are_read(how: str, started: tuple[Served, Child]) -> None:
    service, process = started
    before = process.resident
    process.forget_peak()
    length = {
        "with its length": b"content-length: 314572800",
        "in chunks": b"transfer-encoding: chunked",
        "with a false length": b"content-length: 33554432",
    }[how]
    head = b"POST /analyze_image_upload/ HTTP/1.1\r\nhost: 127.0.0.1\r\n"
    head += b"content-type: multipart/form-data; boundary=x\r\n" + length + b"\r\n\r\n"
    part = b'--x\r\ncontent-disposition: form-data; name="image_file"; filename="a"\r\n\r\n'
    piece = bytes(2**20)
    sent = 0
    with service.connect() as connection:
        connection.sendall(head)
        with suppress(ConnectionResetError, BrokenPipeError):  # it is hung up on, after its answer
            for body in (part, *[piece] * 300):
                if how == "in chunks":
                    body = b"%x\r\n%b\r\n" % (len(body), body)
                connection.sendall(body)
                sent += len(body)
                if select.select([connection], [], [], 0)[0]:
                    break
        answer = answer_of(connection)
    assert process.peak - before <= 64
    assert sent <= LIMIT + 16 * 2**20  # what the kernel's buffers hold comes on top of the limit
    if how == "with a false length":  # all of it was read, and what comes after it is no request
        assert answer.startswith(b"HTTP/1.1 4")
    else:
        assert answer.startswith(b"HTTP/1.1 413")
        assert b"connection: close" in answer
        assert b"too_large" in answer


@pytest.mark.parametrize("length", [b"-1", b"x", b"1, 2", b"99999999999999999999999999", b"10"])
def test_false_lengths_break_nothing(length: bytes, started: tuple[Served, Child]) -> None:
    service, _ = started
    with service.connect(10) as connection:
        connection.sendall(
            b"POST /analyze_image_upload/ HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n"
            b"content-type: multipart/form-data; boundary=x\r\ncontent-length: "
            + length
            + b"\r\n\r\n--x--\r\n"
        )
        answer = answer_of(connection)
    assert answer == b"" or answer.split()[1] in (b"400", b"408", b"413", b"422")
    assert service.upload(PHOTO, "embed_siglip").status == 200


def test_slow_bodies_and_slow_headers_are_closed(started: tuple[Served, Child]) -> None:
    service, process = started
    with slow_clients(service, 100) as left:
        wait_until(lambda: left() == 0)
    assert process.process.poll() is None


def test_slow_bodies_and_slow_headers_hold_up_nobody(index: Path) -> None:
    with (
        serving(classifier(index, headers_seconds=60.0, body_seconds=60.0)) as service,
        slow_clients(service, 100) as left,
    ):
        assert service.upload(PHOTO, "embed_siglip").status == 200
        assert left() == 100


@pytest.mark.timing
def test_slow_bodies_and_slow_headers_are_closed_in_time_and_nobody_waits(
    started: tuple[Served, Child],
) -> None:
    begun = time.monotonic()
    with slow_clients(started[0], 100) as left, pinging(started[0]) as waits:
        wait_until(lambda: left() == 0)
        assert time.monotonic() - begun <= 1.5 + 5
    assert max(waits) < 1.5


@pytest.mark.timing
@pytest.mark.slow
def test_slow_clients_hold_up_nobody_with_the_times_that_are_set_by_default(
    index: Path, tmp_path: Path
) -> None:
    with child(tmp_path, classifier(index)) as (service, _):
        service.upload(PHOTO, "embed_siglip")
        with pinging(service) as before:
            time.sleep(3)
        begun = time.monotonic()
        with slow_clients(service, 400) as left, pinging(service) as waits:
            wait_until(lambda: left() == 0)
            assert time.monotonic() - begun <= 15 + 5
    assert len(waits) > 40
    assert p99(waits) <= max(0.25, 3 * p99(before))  # the latter where the machine is busy anyhow


def p99(waits: list[float]) -> float:
    return sorted(waits)[int(0.99 * len(waits))]


@contextmanager
def slow_clients(service: Served, n: int) -> Iterator[Callable[[], int]]:
    """So many that hold a connection each; how many have not been hung up on yet."""
    body = (
        b"POST /analyze_image_upload/ HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: 9999\r\n"
        b"content-type: multipart/form-data; boundary=x\r\n\r\n--x"
    )
    with ExitStack() as stack:
        open_still = {stack.enter_context(service.connect()) for _ in range(n)}
        for i, connection in enumerate(open_still):
            connection.sendall(body if i % 2 else b"GET /health HTTP/1.1\r\nx-slow: ")

        def left() -> int:
            open_still.difference_update([each for each in open_still if is_closed(each)])
            return len(open_still)

        yield left


def is_closed(connection: socket.socket) -> bool:
    """After another byte: the client is slow, not gone."""
    try:
        connection.sendall(b"a")
        return bool(select.select([connection], [], [], 0)[0]) and not connection.recv(65536)
    except OSError:
        return True


@contextmanager
def pinging(service: Served) -> Iterator[list[float]]:
    """Seconds that the list of operations took, again and again while the block runs."""
    waits: list[float] = []
    done = threading.Event()

    def ping() -> None:
        while not done.wait(0.05):
            asked = time.monotonic()
            assert service.ask("GET", "/available_operations/").status == 200
            waits.append(time.monotonic() - asked)

    thread = threading.Thread(target=ping)
    thread.start()
    try:
        yield waits
    finally:
        done.set()
        thread.join()


def test_a_body_that_is_no_form_is_small(started: tuple[Served, Child]) -> None:
    """JSON is parsed where all others wait, and takes many times its size."""
    service, process = started
    before = process.resident
    process.forget_peak()
    body = b'{"image_url": "http://open.test/", "tasks": [' + b"[]," * 5_000_000 + b"[]]}"
    head = b"POST /analyze_image/ HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    with service.connect() as connection:
        with suppress(ConnectionError):
            connection.sendall(head + b"content-length: %d\r\n\r\n" % len(body) + body)
        answer = answer_of(connection)
    assert answer.startswith(b"HTTP/1.1 413")
    assert process.peak - before <= 64


def test_who_does_not_take_an_answer_is_hung_up(index: Path, tmp_path: Path) -> None:
    """A reader that never reads holds a connection, and the answer, no longer than a slow one may."""
    noise = np.random.default_rng(0).integers(140, 256, (1200, 1200, 3), dtype=np.uint8)
    photo = encoded(Image.fromarray(noise))
    tasks = json.dumps(
        as_tasks(*[("describe_image", {"target": "prominent_person", "prompt": f"{i}"}) for i in range(5)])
    )
    made = httpx2.Request(
        "POST", "http://localhost/", files={"image_file": photo}, data={"tasks_json": tasks}
    )
    head = b"".join(b"%b: %b\r\n" % pair for pair in made.headers.raw)
    with (
        child(tmp_path, classifier(index, connections=4, headers_seconds=1.0)) as (service, _),
        ExitStack() as stack,
    ):
        for _ in range(4):
            connection = stack.enter_context(service.connect())
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            connection.sendall(b"POST /analyze_image_upload/ HTTP/1.1\r\n" + head + b"\r\n" + made.read())
        time.sleep(1)
        assert service.ask("GET", "/health").status == 503  # they hold all there is
        time.sleep(6)
        assert service.ask("GET", "/health").status == 200


def mutated(seed: int) -> tuple[str, str, dict[str, str], bytes]:
    """A valid request with something changed."""
    chance = random.Random(seed)  # noqa: S311 -- the same requests each time
    tasks = json.dumps({"tasks": as_tasks("embed_siglip", ("describe_image", {"max_length": 5}))}).encode()
    form = (
        b'--x\r\nContent-Disposition: form-data; name="image_file"; filename="a.png"\r\n'
        b"Content-Type: image/png\r\n\r\n" + PHOTO + b"\r\n--x\r\n"
        b'Content-Disposition: form-data; name="tasks_json"\r\n\r\n' + tasks + b"\r\n--x--\r\n"
    )
    url = json.dumps({"image_url": "http://open.test/", "tasks": as_tasks("embed_siglip")}).encode()
    kind, body, path = chance.choice(
        [
            ("multipart/form-data; boundary=x", form, "/analyze_image_upload/"),
            ("multipart/form-data; boundary=x", form, "/analyze_images/"),
            ("application/json", url, "/analyze_image/"),
        ]
    )
    changed = bytearray(body)
    for _ in range(chance.choice([0, 1, 3, 30])):
        place = chance.randrange(len(changed) + 1)
        match chance.randrange(4):
            case 0:
                del changed[place : place + chance.randrange(1, 60)]
            case 1:
                changed[place:place] = chance.randbytes(chance.randrange(1, 60))
            case 2:
                changed[place:place] = chance.choice(
                    [b"--x", b"\r\n", b'"', b"{", b"\0", b"\xff\xfe", b"[[[[", b"1e999"]
                )
            case _:
                changed[place:place] = changed[place // 2 : place]
    kind = chance.choice(
        [kind] * 6
        + ["", "multipart/form-data", kind + "y", "text/plain", "multipart/form-data; boundary=" + "y" * 300]
    )
    path = chance.choice([path] * 8 + ["//", path + "?" + "a=" * 500, "/%2e%2e/%00", path.upper()])
    method = chance.choice(["POST"] * 8 + ["GET", "PUT", "OPTIONS", "TRACE", "X"])
    headers = {"content-type": kind} | chance.choice(
        [{}] * 6
        + [
            {"x-large": "y" * 20_000},
            {"accept-encoding": "\x7f"},
            {"expect": "200-maybe"},
            {"cookie": "=;" * 900},
        ]
    )
    return method, path, headers, bytes(changed)


def test_malformed_requests_are_refused_and_never_break_anything(started: tuple[Served, Child]) -> None:
    service, process = started
    statuses = {}
    for seed in range(500):
        method, path, headers, body = mutated(seed)
        reply = service.ask(method, path, headers, content=body)
        assert_tells_nothing(reply)
        statuses[reply.status] = statuses.get(reply.status, 0) + 1
    assert all(status < 500 for status in statuses), statuses
    assert statuses[400] > 50
    assert sum(count for status, count in statuses.items() if status >= 400) > 300
    assert [r for r in process.records() if r["level"] == "ERROR"] == []


@pytest.mark.parametrize(
    "garbage",
    [
        b"\x16\x03\x01\x02\x00",
        b"GET\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"\0" * 100,
        b"GET / HTTP/1.1\r\n\r\n",
    ],
)
def test_what_is_no_http_is_answered_or_hung_up(garbage: bytes, started: tuple[Served, Child]) -> None:
    service, _ = started
    with service.connect(10) as connection:
        connection.sendall(garbage)
        answer = answer_of(connection)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 4")
    assert service.ask("GET", "/health").status == 200


@contextmanager
def besieged(index: Path, tmp_path: Path) -> Iterator[Child]:
    """A service of which 200 connections are held by clients that say no more."""
    with child(tmp_path, classifier(index)) as (service, process), ExitStack() as stack:
        held = [stack.enter_context(service.connect()) for _ in range(200)]
        for i, connection in enumerate(held):
            connection.sendall(
                b"POST /analyze_images/ HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n"
                if i % 2
                else b"GET /"
            )
        yield process


def test_it_stops_though_200_connections_are_held(index: Path, tmp_path: Path) -> None:
    with besieged(index, tmp_path) as process:
        assert process.stopped() == 143


@pytest.mark.timing
def test_it_stops_within_ten_seconds_though_200_connections_are_held(index: Path, tmp_path: Path) -> None:
    with besieged(index, tmp_path) as process:
        begun = time.monotonic()
        process.stopped()
        assert time.monotonic() - begun <= 10


def test_a_photo_that_is_being_sent_when_it_stops_is_still_answered(index: Path, tmp_path: Path) -> None:
    with child(tmp_path, classifier(index)) as (service, process), service.connect() as connection:
        body = b"--x--\r\n"
        connection.sendall(
            b"POST /analyze_image_upload/ HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: %d\r\n"
            b"content-type: multipart/form-data; boundary=x\r\n\r\n" % len(body)
        )
        time.sleep(0.3)
        process.process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        connection.sendall(body)
        answer = io.BytesIO(answer_of(connection)).readline()
        assert process.process.wait(timeout=60) == 143
    assert answer.startswith(b"HTTP/1.1 422")
