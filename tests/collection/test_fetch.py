"""The one function that fetches URLs, against servers that misbehave."""

from __future__ import annotations

import itertools
import json
import pickle
import socket
import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest

from clock import without_waiting
from collections_service import Handler, serving
from lmm_classifier.errors import FetchError
from lmm_classifier.fetch import FetchLimits, fetch, post, post_json
from vlm_server import Reply, refuses, says
from vlm_server import serving as posting

pytestmark = pytest.mark.usefixtures("loopback")
QUICK = FetchLimits(connect_s=1, silence_s=0.4, total_s=1.0, max_bytes=10_000, wait_s=0.02)
MARGIN_S = 1.0


def code_of(url: str) -> str:
    """The code with which it is refused, in one line."""
    with pytest.raises(FetchError) as caught:
        fetch(url, limits=QUICK)
    assert "\n" not in str(caught.value)
    return caught.value.code


def test_an_answer_is_its_bytes_and_is_asked_for_plainly() -> None:
    with serving({"/a?b=c": b"[1, 2]"}) as server:
        assert fetch(f"{server.url}/a?b=c#top", headers={"Authorization": "Bearer x"}) == b"[1, 2]"
        [(_, headers)] = server.asked
    assert headers["Accept-Encoding"] == "identity"
    assert headers["Authorization"] == "Bearer x"


def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    with serving({"/a": b"x"}) as server:
        assert fetch(f"{server.url}/a") == b"x"


def drip_body(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in range(200):
        handler.wfile.write(b" ")
        time.sleep(0.05)


def drip_headers(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(200):
        handler.wfile.write(b"a" if number % 9 else b"\r\nX-Y: ")
        time.sleep(0.05)


def silent(handler: Handler) -> None:
    time.sleep(3)


@pytest.mark.parametrize("slow", [drip_body, drip_headers, silent])
def test_a_slow_answer_ends_when_the_time_is_over(slow) -> None:
    """Each read succeeds in time; the clock is that of the whole fetch."""
    with serving({"/a": slow}) as server:
        assert code_of(f"{server.url}/a") == "timeout"


@pytest.mark.timing
@pytest.mark.parametrize("slow", [drip_body, drip_headers, silent])
def test_a_slow_answer_takes_no_longer_than_the_time_there_is(slow) -> None:
    with serving({"/a": slow}) as server:
        started = time.monotonic()
        code_of(f"{server.url}/a")
        assert time.monotonic() - started < QUICK.total_s + MARGIN_S


def endless(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in itertools.count():
        handler.wfile.write(b" " * 5000)


def huge_by_its_header(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(1 << 40))
    handler.end_headers()


@pytest.mark.parametrize("huge", [endless, huge_by_its_header])
def test_a_huge_answer_is_cut_off_and_not_asked_for_again(huge) -> None:
    with serving({"/a": huge}) as server:
        assert code_of(f"{server.url}/a") == "too_large"
        assert server.paths == ["/a"]


def test_a_busy_server_is_asked_again_and_a_sure_one_is_not() -> None:
    answers = iter([503, 429, 200])

    def busy(handler: Handler) -> None:
        handler.say(next(answers), b"at last")

    with serving({"/busy": busy, "/forbidden": lambda handler: handler.say(403, b"secret")}) as server:
        assert fetch(f"{server.url}/busy", limits=QUICK) == b"at last"
        assert server.paths == ["/busy"] * 3
        assert code_of(f"{server.url}/forbidden") == "bad_status"
        assert server.paths == ["/busy"] * 3 + ["/forbidden"]


def test_a_broken_answer_is_asked_for_again_three_times_at_most() -> None:
    def cut(handler: Handler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "100")
        handler.end_headers()
        handler.wfile.write(b"half of it")

    with serving({"/a": cut}) as server:
        assert code_of(f"{server.url}/a") == "unreachable"
        assert server.paths == ["/a"] * 3


def test_nobody_there() -> None:
    with serving({}) as server:
        url = server.url
    assert code_of(f"{url}/a") == "unreachable"


def test_redirects_are_followed_three_times_and_tell_strangers_no_secrets() -> None:
    with serving({"/there": b"found"}) as other:
        elsewhere = f"{other.url}/there"

        def away(handler: Handler) -> None:
            handler.say(302, b"", Location=elsewhere)

        def round_and_round(handler: Handler) -> None:
            handler.say(302, b"", Location="/loop")

        with serving({"/away": away, "/loop": round_and_round}) as server:
            assert fetch(f"{server.url}/away", headers={"Authorization": "Bearer x"}) == b"found"
            assert "Authorization" in server.asked[0][1]
            assert "Authorization" not in other.asked[0][1]
            assert code_of(f"{server.url}/loop") == "redirected"
            assert server.paths.count("/loop") == 4


@pytest.mark.parametrize("location", ["file:///etc/passwd", "ftp://127.0.0.1/a", "http://a b/"])
def test_a_redirect_to_something_else_is_refused(location: str) -> None:
    with serving({"/a": lambda handler: handler.say(302, b"", Location=location)}) as server:
        assert code_of(f"{server.url}/a") == "bad_url"


@pytest.mark.parametrize(
    "url",
    [
        "ftp://host/a",
        "file:///etc/passwd",
        "http://",
        "http://user:word@host/",
        "http://ho st/",
        "http://host\\@other/",
        "http://h%6fst/",
        "http://host:99999/",
        "http://host:0/",
        "http://[::1/",
        "http://host/\n",
        "http://höst/",
        "http://host/" + "a" * 3000,
    ],
)
def test_what_is_no_plain_url_is_refused_before_anything_is_opened(url: str) -> None:
    assert code_of(url) == "bad_url"


def test_a_server_says_how_long_it_wants_to_be_left_in_peace(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = without_waiting(monkeypatch)
    statuses = iter([503, 200, 503])

    def busy(handler: Handler) -> None:
        handler.say(next(statuses), b"x", **{"Retry-After": "1"})

    with serving({"/a": busy}) as server:
        assert fetch(f"{server.url}/a") == b"x"
        assert pauses == [1]
        assert code_of(f"{server.url}/a") == "bad_status"  # that is all the time there is
        assert (len(server.paths), pauses) == (3, [1])


def slow_look_up(*arguments: Any, **options: Any) -> Any:
    time.sleep(3)
    return []


def failing_look_up(*arguments: Any, **options: Any) -> Any:
    raise socket.gaierror(-2, "Name or service not known")


def test_looking_a_name_up_has_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(socket, "getaddrinfo", slow_look_up)
    assert code_of("http://example.invalid/") == "timeout"
    monkeypatch.setattr(socket, "getaddrinfo", failing_look_up)
    assert code_of("http://example.invalid/") == "unreachable"


def test_a_name_that_cannot_be_looked_up_is_unreachable() -> None:
    assert code_of("http://" + "a" * 70 + ".invalid/") == "unreachable"  # a label may have 63 characters


def test_all_addresses_of_a_name_are_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """As of "localhost" where the server listens at the second one alone."""
    real = socket.getaddrinfo

    def two(host: str, port: int, *arguments: Any, **options: Any) -> Any:
        names = ("::1", "127.0.0.1") if host == "two.invalid" else (host,)
        return [entry for name in names for entry in real(name, port, *arguments, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", two)
    with serving({"/a": b"x"}) as server:
        assert fetch(f"http://two.invalid:{server.server_port}/a", limits=QUICK) == b"x"


class TestPost:
    def test_is_the_value_as_json(self) -> None:
        value = {"a": [1, "ä\n"], "b": None}
        with posting({"/a": says(b"[1]")}) as server:
            assert post_json(f"{server.url}/a", value, headers={"Authorization": "Bearer x"}) == b"[1]"
            [asked] = server.asked
        assert asked.body == value
        assert (asked.headers["Content-Type"], asked.headers["Authorization"]) == (
            "application/json",
            "Bearer x",
        )

    def test_may_be_of_anything(self) -> None:
        with posting({"/a": says(b"[1]")}) as server:
            sent = post(f"{server.url}/a", b'{"a":\n1}', "application/vnd.mine+json", headers={"X": "y"})
            [asked] = server.asked
        assert (sent, asked.body) == (b"[1]", {"a": 1})
        assert (asked.headers["Content-Type"], asked.headers["X"]) == ("application/vnd.mine+json", "y")

    def test_of_what_is_no_json_is_refused(self) -> None:
        with pytest.raises(ValueError, match="JSON compliant"):
            post_json("http://127.0.0.1:1/", float("nan"))

    @pytest.mark.parametrize("status", [400, 404, 422, 429])
    def test_that_is_refused_tells_the_status_and_the_beginning_of_the_reason(self, status: int) -> None:
        with posting({"/a": refuses(status, "b" * 10_000)}) as server:
            error = refusal(f"{server.url}/a")
        assert (error.code, error.status, len(error.said)) == ("bad_status", status, 2048)
        assert json.loads(error.said + '"}')["detail"].startswith("bbb")
        copy = pickle.loads(pickle.dumps(error))  # noqa: S301
        assert (str(copy), copy.status, copy.said) == (str(error), error.status, error.said)

    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_is_not_redirected(self, status: int) -> None:
        with posting({"/there": says(b"found")}) as server:
            server.replies["/a"] = refuses(status, Location="/there")
            assert refusal(f"{server.url}/a").code == "redirected"
            assert server.paths == ["/a"]

    def test_is_tried_again_where_that_may_help(self) -> None:
        answers: list[Reply] = [refuses(503), refuses(429), says(b"at last")]
        replies = iter(answers)
        with posting({"/a": lambda handler, body: next(replies)(handler, body)}) as server:
            assert post_json(f"{server.url}/a", {}, limits=QUICK) == b"at last"
            assert server.paths == ["/a"] * 3

    def test_is_no_try_where_the_server_says_when_to_come_again(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pauses = without_waiting(monkeypatch)
        again = refuses(503, Retry_After="1")
        replies = iter([again, again, says(b"at last")])
        limits = replace(QUICK, total_s=5, tries=1)
        with posting({"/a": lambda handler, body: next(replies)(handler, body)}) as server:
            assert post_json(f"{server.url}/a", {}, limits=replace(limits, patient=True)) == b"at last"
            assert pauses == [1, 1]
            server.replies["/a"] = again
            assert refusal(f"{server.url}/a", limits).status == 503  # who is not patient had one try
            assert refusal(f"{server.url}/a", replace(limits, total_s=2.5, patient=True)).status == 503
            assert pauses == [1, 1] * 2
            assert server.paths == ["/a"] * (3 + 1 + 3)

    def test_that_nobody_wants_any_more_is_not_tried_again(self) -> None:
        stop = threading.Event()
        limits = replace(QUICK, total_s=30, patient=True)
        with posting({"/a": refuses(503, Retry_After="20")}) as server:
            threading.Timer(0.3, stop.set).start()
            with pytest.raises(FetchError, match="answers 503"):
                post(f"{server.url}/a", b"1", "application/json", limits=limits, stop=stop)
            assert stop.is_set()  # until then it waited
            assert server.paths == ["/a"]

    def test_to_a_server_that_hardly_reads_ends_when_the_time_is_over(self) -> None:
        """It takes some bytes now and then, so that each part of the writing succeeds in time."""
        with socket.socket() as listening:
            listening.bind(("127.0.0.1", 0))
            listening.listen()
            read: list[int] = []

            def sip() -> None:
                connection, _ = listening.accept()
                with connection, suppress(ConnectionError):
                    while part := connection.recv(60_000):
                        read.append(len(part))
                        time.sleep(0.01)

            reader = threading.Thread(target=sip)
            reader.start()
            with pytest.raises(FetchError) as caught:
                post_json(f"http://127.0.0.1:{listening.getsockname()[1]}/", "a" * 30_000_000, limits=QUICK)
            assert caught.value.code == "timeout"
            reader.join()
            assert sum(read) < 30_000_000  # the writing was left off


def refusal(url: str, limits: FetchLimits = QUICK) -> FetchError:
    with pytest.raises(FetchError) as caught:
        post_json(url, {"a": 1}, limits=limits)
    assert "\n" not in str(caught.value)
    return caught.value
