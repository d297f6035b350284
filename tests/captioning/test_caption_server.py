"""Captions by a service, as good or as bad as services are."""

from __future__ import annotations

import itertools
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from caption_server import QUICK, Asked, Handler, Reply, answer, captioning, refuses, says, tells_the_size
from clock import without_waiting
from lmm_classifier.captioning.folder import IN_A_ROW, caption_folder
from lmm_classifier.captioning.server import LIMITS, Server
from lmm_classifier.errors import CaptionError, FetchError, LmmClassifierError
from photo_folders import texts, write_photos

pytestmark = pytest.mark.usefixtures("loopback")


def described(folder: Path, reply: Reply, key: str = "") -> tuple[int, list[str]]:
    """Captions written, and why the others are not; by a service that answers like this."""
    told: list[str] = []
    with captioning(reply) as server:
        report = caption_folder(
            folder, Server(server.url, key, limits=QUICK), on_failure=lambda photo, why: told.append(why)
        )
    return report.written, told


def in_turn(*replies: Reply) -> Reply:
    """One after the other, again and again."""
    turns = itertools.cycle(replies)
    return lambda handler, asked: next(turns)(handler, asked)


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_what_may_pass_is_tried_again(tmp_path: Path, status: int) -> None:
    write_photos(tmp_path, "a.jpg")
    assert described(tmp_path, in_turn(refuses(status), refuses(status), tells_the_size)) == (1, [])


@pytest.mark.parametrize("status", [429, 503])
def test_a_service_that_is_busy_is_waited_for_as_long_as_it_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    write_photos(tmp_path, "a.jpg")
    pauses = without_waiting(monkeypatch)
    busy = refuses(status, "overloaded", Retry_After="1")
    assert described(tmp_path, in_turn(busy, tells_the_size)) == (1, [])
    assert pauses == [1]


def test_a_service_that_counts_requests_is_asked_until_every_photo_had_its_turn(tmp_path: Path) -> None:
    """Nobody is let in for a while, and all are told when to come again: more often than there are tries."""
    write_photos(tmp_path, *(f"{n}.jpg" for n in range(8)))
    turns = itertools.count(1)

    def limited(handler: Handler, asked: Asked) -> None:
        if next(turns) < 20:
            return refuses(429, "too_many", Retry_After="1")(handler, asked)
        return tells_the_size(handler, asked)

    with captioning(limited) as server:
        limits = replace(QUICK, total_s=30.0, tries=1)
        report = caption_folder(tmp_path, Server(server.url, at_once=8, limits=limits))
    assert (report.written, report.failed) == (8, 0)


@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (400, "the server answers 400: some reason"),
        (413, "the server answers 413: some reason"),
        (422, "the server answers 422: some reason"),
        (500, "the server answers 500: some reason"),
        (503, "the server answers 503: some reason"),
    ],
)
def test_a_photo_that_is_refused_fails_alone(tmp_path: Path, status: int, reason: str) -> None:
    write_photos(tmp_path, "a.jpg", "b.jpg", "c.jpg")

    def picky(handler: Handler, asked: Asked) -> None:
        return refuses(status)(handler, asked) if asked.name == "b.jpg" else tells_the_size(handler, asked)

    written, [told] = described(tmp_path, picky)
    assert written == 2
    assert told.endswith(reason)
    assert set(texts(tmp_path)) == {"a.txt", "c.txt"}


@pytest.mark.parametrize(
    ("reply", "says_so"),
    [
        (refuses(401), "401: some reason; give the key of the service with --key-file"),
        (refuses(403), "403: some reason; give the key"),
        (refuses(404), "404: some reason; is it the address of the service?"),
        (refuses(405), "is it the address of the service?"),
        (refuses(307, Location="/there"), "give the address that it leads to"),
        (says(None, status="skipped", error_code="unknown_operation", error_message="no such"), "no such"),
        (says(None, status="error", error_code="model_unavailable", error_message="not here"), "not here"),
    ],
)
def test_what_no_photo_can_pass_ends_it_at_once(tmp_path: Path, reply: Reply, says_so: str) -> None:
    write_photos(tmp_path, *(f"{n:02}.jpg" for n in range(30)))
    told: list[str] = []
    with captioning(reply) as server:
        source = Server(server.url, at_once=2, limits=QUICK)
        with pytest.raises(LmmClassifierError) as caught:
            caption_folder(tmp_path, source, on_failure=lambda *why: told.extend(why))
        assert len(server.asked) <= 4
    assert says_so in str(caught.value)
    assert "\n" not in str(caught.value)
    assert told == []
    assert texts(tmp_path) == {}


def is_silent(handler: Handler, asked: Asked) -> None:
    time.sleep(QUICK.silence_s * 2)


def hangs_up(handler: Handler, asked: Asked) -> None:
    handler.close_connection = True


def sends(body: bytes) -> Reply:
    return lambda handler, asked: handler.say(200, body)


def breaks_off(handler: Handler, asked: Asked) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b'{"results":')


GARBAGE: dict[str, Reply] = {
    "a page": sends(b"<!doctype html><title>Welcome</title>"),
    "nothing": sends(b""),
    "half an answer": sends(b'{"results": {"caption": {"status": "succ'),
    "a list": sends(b"[1, 2]"),
    "no results": sends(b'{"results": {}}'),
    "another task": sends(b'{"results": {"other": {"status": "success", "data": "words"}}}'),
    "no words": says(["a", "b"]),
    "a number": says(7),
    "half a pair": sends(b'{"results": {"caption": {"status": "success", "data": "\\ud800"}}}'),
    "no UTF-8": sends(b'{"results": {"caption": {"status": "success", "data": "\xff"}}}'),
    "deep": sends(b'{"results":' + b"[" * 50_000),
    "huge": sends(b" " * 2**20),
    "a huge caption": says("word " * 100_000),
    "a failure": says(None, status="error", error_code="model_failed", error_message="it\nfailed\x1b[0m"),
    "silence": is_silent,
    "hung up": hangs_up,
    "broken off": breaks_off,
}


@pytest.mark.parametrize("name", GARBAGE)
def test_whatever_comes_back_is_one_line_and_no_file(tmp_path: Path, name: str) -> None:
    write_photos(tmp_path, "a.jpg")
    written, [told] = described(tmp_path, GARBAGE[name])
    assert (written, texts(tmp_path)) == (0, {})
    assert told.isprintable()
    assert len(told) < 400


def test_a_service_that_answers_nonsense_to_all_is_left(tmp_path: Path) -> None:
    write_photos(tmp_path, *(f"{n:02}.jpg" for n in range(40)))
    with pytest.raises(
        CaptionError, match="is not that of a service that describes images: '<!doctype html>"
    ):
        described(tmp_path, GARBAGE["a page"])
    with captioning(refuses(400)) as server:  # but one that refuses photo after photo is asked about all
        assert caption_folder(tmp_path, Server(server.url, limits=QUICK)).failed == 40 > IN_A_ROW


def test_a_service_that_goes_away_ends_it_and_the_rest_is_for_the_next_time(tmp_path: Path) -> None:
    write_photos(tmp_path, *(f"{n:02}.jpg" for n in range(20)))
    told: list[str] = []
    with captioning() as server:

        def last(handler: Handler, asked: Asked) -> None:
            if asked.name == "05.jpg":
                server.socket.close()  # nobody comes in any more
            if asked.name >= "05.jpg":
                return hangs_up(handler, asked)
            return tells_the_size(handler, asked)

        server.reply = last
        source = Server(server.url, at_once=1, limits=QUICK)
        with pytest.raises(FetchError, match="does the service run"):
            caption_folder(tmp_path, source, on_failure=lambda *why: told.extend(why))
    assert told == []
    assert sorted(texts(tmp_path)) == [f"{n:02}.txt" for n in range(5)]
    with captioning() as server:
        report = caption_folder(tmp_path, Server(server.url, limits=QUICK))
    assert (report.written, report.present) == (15, 5)


def test_where_nobody_is_there_it_is_not_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A person waits."""
    write_photos(tmp_path, "a.jpg")
    pauses = without_waiting(monkeypatch)
    with pytest.raises(FetchError, match=r"does the service run\? \[unreachable\]"):
        caption_folder(tmp_path, Server("http://127.0.0.1:1"))
    assert pauses == []


@pytest.mark.parametrize("key", ["", "sk-right"])
def test_the_key_is_sent_and_never_repeated(tmp_path: Path, key: str) -> None:
    write_photos(tmp_path, "a.jpg")
    seen: list[Any] = []

    def echo(handler: Handler, asked: Asked) -> None:
        seen.append(asked.headers.get("Authorization"))
        refuses(400, detail=f"you said {seen[-1]}")(handler, asked)

    _, [told] = described(tmp_path, echo, key)
    assert seen == [f"Bearer {key}" if key else None]
    assert told.endswith("you said Bearer ***" if key else "you said None")
    for reply in (sends(b"a page for sk-right"), says(None, status="error", error_message="no sk-right")):
        assert ("sk-right" in described(tmp_path, reply, key)[1][0]) == (not key)
    assert "sk-right" not in repr(Server("http://127.0.0.1:1", "sk-right"))


def test_what_is_no_photo_is_not_sent(tmp_path: Path) -> None:
    for name, content in {"a.jpg": b"no photo", "b.jpg": b"", "c.jpg": b"<svg/>"}.items():
        (tmp_path / name).write_bytes(content)
    with captioning() as server:
        report = caption_folder(tmp_path, Server(server.url, limits=QUICK))
        assert (report.failed, server.asked) == (3, [])


def test_more_fields_than_we_know_are_left_alone(tmp_path: Path) -> None:
    write_photos(tmp_path, "a.jpg")
    body = {**answer("words", region={"used": "whole_image"}, seconds=0.1), "version": 2}
    assert described(tmp_path, lambda handler, asked: handler.say(200, body)) == (1, [])
    assert texts(tmp_path) == {"a.txt": "words"}


def test_the_limits_of_every_day() -> None:
    """A model may think for a minute, and a photo wait for its turn for five."""
    assert (LIMITS.silence_s, LIMITS.total_s, LIMITS.tries, LIMITS.patient) == (60, 300, 3, True)
    assert LIMITS.max_bytes == 256 * 2**10
