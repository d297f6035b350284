"""The one function that fetches URLs, against servers that misbehave."""

from __future__ import annotations

import itertools
import time

import pytest

from collections_service import Handler, serving
from lmm_classifier.errors import FetchError
from lmm_classifier.fetch import FetchLimits, fetch

pytestmark = pytest.mark.usefixtures("loopback")
QUICK = FetchLimits(connect_s=1, silence_s=0.4, total_s=1.0, max_bytes=10_000, wait_s=0.02)
MARGIN_S = 1.0


def code_of(url: str) -> str:
    """The code with which it is refused, in one line and in time."""
    started = time.monotonic()
    with pytest.raises(FetchError) as caught:
        fetch(url, limits=QUICK)
    assert "\n" not in str(caught.value)
    assert time.monotonic() - started < QUICK.total_s + MARGIN_S
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
