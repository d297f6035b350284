"""The chooser behind a server that fails in every way a test can think of: one line of error, and in time."""

from __future__ import annotations

import itertools
import json
import math
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
from PIL import Image

from clock import from_now, without_waiting
from lmm_classifier.errors import ModelError, OutOfTimeError
from lmm_classifier.fetch import FetchLimits
from lmm_classifier.models.base import Question
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.models.vlm.openai_api import LIMITS, OpenAIChooser
from vlm_server import (
    CHAT,
    Body,
    Handler,
    Reply,
    VlmServer,
    completion,
    dripping,
    refuses,
    says,
    serving,
    silent,
    watching,
)

pytestmark = pytest.mark.usefixtures("loopback")
QUICK = FetchLimits(connect_s=1, silence_s=0.3, total_s=1.0, max_bytes=2**20, wait_s=0.02, redirects=0)
DUE_S = 0.5
SLACK_S = 0.25  # two busy cores
LABELS = ("rose", "tulip")
GOOD = completion("A", [("A", -0.5), ("B", -1.5)])


def question(due: float | None = None) -> Question:
    return Question(Image.new("RGB", (8, 8)), "Which?", LABELS, "letter", due=due)


def drip_headers(handler: Handler, body: Body) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(60):
        handler.wfile.write(b"a" if number % 9 else b"\r\nX-Y: ")
        time.sleep(0.05)


def closed(handler: Handler, body: Body) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def cut(handler: Handler, body: Body) -> None:
    """Half of what the header promises."""
    handler.send_response(200)
    handler.send_header("Content-Length", "100")
    handler.end_headers()
    handler.wfile.write(b'{"choices"')


def endless(handler: Handler, body: Body) -> None:
    handler.send_response(200)
    handler.end_headers()
    for _ in itertools.count():
        handler.wfile.write(b" " * 50_000)


def no_http(handler: Handler, body: Body) -> None:
    handler.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n" * 20)


def with_logprob(text: str) -> bytes:
    return json.dumps(GOOD).replace("-1.5", text).encode()


def nested(depth: int) -> bytes:
    return b'{"choices":' + b"[" * depth + b"]" * depth + b"}"


FAULTS: dict[str, tuple[Reply, str]] = {
    "timeout": (silent, "no whole answer in time"),
    "429": (refuses(429, "slow down"), "429: .*slow down.*max_batch_size"),
    "429 for an hour": (refuses(429, Retry_After="3600"), "answers 429"),
    "429 until a day": (refuses(429, Retry_After="Wed, 21 Oct 2015 07:28:00 GMT"), "answers 429"),
    "500": (refuses(500, "CUDA error\n  at 0x1"), "answers 500: .*CUDA error"),
    "401": (refuses(401), "answers 401.*set OPENAI_API_KEY"),
    "413": (refuses(413), "answers 413"),
    "201": (lambda handler, body: handler.say(201, GOOD), "answers 201"),
    "refusal, dripped": (dripping(400), "no whole answer in time"),
    "refusal of 10 MB": (refuses(413, "\x1b[2J" * 2_500_000), "answers 413"),
    "cut JSON": (says(json.dumps(GOOD).encode()[:200]), "Invalid JSON"),
    "cut answer": (cut, "no whole answer"),
    "not JSON": (says(b"<html>\n<body>Welcome</body></html>"), "Invalid JSON"),
    "not UTF-8": (says(b'{"choices": "\xff"}'), "Invalid JSON|valid"),
    "nothing": (says(b""), "Invalid JSON"),
    "another shape": (says([1, 2]), "not as its API documents it"),
    "no choices": (says({**GOOD, "choices": []}), "choices"),
    "nested": (says(nested(50_000)), "Invalid JSON|not as its API"),
    "10 MB": (says(b" " * 10 * 2**20), "more than 1048576 bytes"),
    "endless": (endless, "more than 1048576 bytes"),
    "slow drip": (dripping(200), "no whole answer in time"),
    "slow headers": (drip_headers, "no whole answer in time"),
    "connection closed": (closed, "no whole answer .*does the server run"),
    "no HTTP": (no_http, "no whole answer"),
    "NaN": (says(with_logprob("NaN")), "finite"),
    "-Infinity": (says(with_logprob("-Infinity")), "finite"),
    "1e999": (says(with_logprob("-1e999")), "finite"),
    "a positive logprob": (says(with_logprob("0.5")), "less than or equal to 0.001"),
    "a logprob as text": (says(with_logprob('"-1.5"')), "valid number"),
    "a huge whole number": (says(with_logprob("-" + "9" * 6000)), "not as its API documents it"),
    "wrong label": (says(completion("tulip", [("tulip", -0.1)])), "none of the answers A, B"),
    "logprobs missing, wrong label": (says(completion("tulip")), "which is none of the options"),
}


@pytest.fixture
def serve() -> Iterator[Callable[[Reply], VlmServer]]:
    """Starts a server that answers all chats alike."""
    contexts = []

    def start(reply: Reply) -> VlmServer:
        contexts.append(serving({CHAT: reply}))
        return contexts[-1].__enter__()

    yield start
    for context in contexts:
        context.__exit__(None, None, None)


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_is_an_error_of_one_line(fault: str, serve) -> None:
    reply, said = FAULTS[fault]
    server = serve(reply)
    with pytest.raises(ModelError, match=said) as caught:
        OpenAIChooser(ModelSpec("openai_api", server.weights), QUICK).log_likelihoods([question()], 4)
    line = str(caught.value)
    assert server.url in line
    assert line.isprintable()
    assert len(line) < 1000
    assert not isinstance(caught.value, OutOfTimeError)


@pytest.mark.timing
@pytest.mark.parametrize("fault", FAULTS)
def test_no_fault_outlasts_the_time_that_there_is(fault: str, serve) -> None:
    server = serve(FAULTS[fault][0])
    started = time.monotonic()
    with pytest.raises(ModelError):
        OpenAIChooser(ModelSpec("openai_api", server.weights), QUICK).log_likelihoods([question()], 4)
    assert time.monotonic() - started < QUICK.total_s * 1.1 + SLACK_S


@pytest.mark.parametrize("fault", ["timeout", "slow drip", "slow headers", "refusal, dripped"])
def test_an_answer_that_is_not_whole_when_it_is_due_is_given_up(fault: str, serve) -> None:
    """With the limits of every day, which would let it come."""
    chooser = OpenAIChooser(ModelSpec("openai_api", serve(FAULTS[fault][0]).weights))
    with pytest.raises(OutOfTimeError):
        chooser.log_likelihoods([question(from_now(DUE_S))], 4)


@pytest.mark.timing
@pytest.mark.parametrize("fault", FAULTS)
def test_no_fault_outlasts_the_time_that_a_question_is_due(fault: str, serve) -> None:
    """With the limits of every day; another label, or no JSON, is no matter of time."""
    server = serve(FAULTS[fault][0])
    chooser = OpenAIChooser(ModelSpec("openai_api", server.weights))
    started = time.monotonic()
    with pytest.raises(ModelError) as caught:
        chooser.log_likelihoods([question(started + DUE_S)], 4)
    took = time.monotonic() - started
    assert took < DUE_S * 1.1 + SLACK_S
    assert isinstance(caught.value, OutOfTimeError) == (took >= DUE_S - 0.02)


def test_a_question_that_is_overdue_is_not_sent(serve) -> None:
    server = serve(watching)
    with pytest.raises(OutOfTimeError, match="due"):
        chooser(server).log_likelihoods([question(from_now(-1))], 4)
    assert server.asked == []


def test_questions_that_wait_for_others_are_given_up_when_they_are_due(serve) -> None:
    def slow(handler: Handler, body: Body) -> None:
        time.sleep(0.2)
        watching(handler, body)

    server = serve(slow)
    with pytest.raises(OutOfTimeError):
        chooser(server).log_likelihoods([question(from_now(DUE_S))] * 20, 2)
    assert len(server.asked) < 8


@pytest.mark.parametrize(
    "answers",
    [
        [refuses(429), refuses(503)],
        [refuses(429, Retry_After="0"), closed],
        [silent, cut],
    ],
)
def test_what_passes_is_tried_again(answers: list[Reply], serve) -> None:
    replies = iter([*answers, says(GOOD)])
    server = serve(lambda handler, body: next(replies)(handler, body))
    [rated] = chooser(server).log_likelihoods([question()], 4)
    assert rated.tolist() == [-0.5, -1.5]
    assert server.paths == [CHAT] * 3
    assert len({json.dumps(asked.body) for asked in server.asked}) == 1


def test_a_server_is_left_in_peace_for_as_long_as_it_says(serve, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses = without_waiting(monkeypatch)
    answers = iter([(429, {}), (200, GOOD), (429, {})])

    def busy(handler: Handler, body: Body) -> None:
        handler.say(*next(answers), Retry_After="60")

    server = serve(busy)
    limits = replace(LIMITS, total_s=90)
    OpenAIChooser(ModelSpec("openai_api", server.weights), limits).log_likelihoods([question()], 4)
    assert pauses == [60]
    late = question(from_now(50))
    with pytest.raises(ModelError, match="429"):  # longer than the time that is left: no use to wait
        OpenAIChooser(ModelSpec("openai_api", server.weights), limits).log_likelihoods([late], 4)
    assert (len(server.asked), pauses) == (3, [60])


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_no_redirect_is_followed_and_the_key_stays(
    status: int, serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret-123")
    other = serve(watching)

    def away(handler: Handler, body: Body) -> None:
        handler.say(status, {}, Location=f"{other.url}{CHAT}")

    server = serve(away)
    with pytest.raises(ModelError, match="redirected to .* not followed") as caught:
        chooser(server).log_likelihoods([question()], 4)
    assert other.asked == []
    assert len(server.asked) == 1
    assert "sk-secret" not in str(caught.value)


def test_one_bad_question_fails_the_call_and_spares_the_rest_of_it(serve) -> None:
    """The step then asks one by one; what was not sent yet is not sent."""

    def picky(handler: Handler, body: Body) -> None:
        time.sleep(0.05)
        if "bad" in body["messages"][0]["content"][-1]["text"]:
            return handler.say(400, {"detail": "too long"})
        return handler.say(200, GOOD)

    server = serve(picky)
    good = question()
    bad = Question(good.image, "bad", LABELS, "letter")
    engine = chooser(server)
    with pytest.raises(ModelError, match="too long"):
        engine.log_likelihoods([good, good, bad, *[good] * 40], 2)
    assert len(server.asked) < 20
    assert [len(values) for values in engine.log_likelihoods([good], 2)] == [2]


def test_nobody_there(serve) -> None:
    with serving({}) as server:
        weights = server.weights
    with pytest.raises(ModelError, match=r"no whole answer \(ConnectError\).*does the server run"):
        OpenAIChooser(ModelSpec("openai_api", weights), QUICK).log_likelihoods([question()], 4)


def test_the_limits_of_every_day_are_bounded() -> None:
    assert (LIMITS.total_s, LIMITS.max_bytes, LIMITS.redirects) == (60, 2**20, 0)
    assert math.isfinite(LIMITS.silence_s)


def chooser(server: VlmServer) -> OpenAIChooser:
    return OpenAIChooser(ModelSpec("openai_api", server.weights), QUICK)
