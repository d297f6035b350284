"""`caption` as a shell runs it, with a model here and with a service."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from caption_server import Asked, CaptionServer, Handler, captioning, refuses, says, tells_the_size
from clock import wait_until
from photo_folders import texts, write_photos
from shell import run

MODEL = ("--model", "fake")
SAYS = "a picture of 30 by 20 pixels"


@pytest.fixture
def service() -> Iterator[CaptionServer]:
    with captioning() as server:
        yield server


@pytest.fixture(params=["model", "server"])
def door(request: pytest.FixtureRequest, service: CaptionServer) -> tuple[str, ...]:
    """The two ways to the words, which must be the same by either."""
    return MODEL if request.param == "model" else ("--server", service.url)


def test_every_photo_below_the_folder_is_captioned_whatever_the_case_of_its_suffix(
    tmp_path: Path, door: tuple[str, ...]
) -> None:
    names = ["a.jpg", "b.JPG", "c.jpeg", "d.Png", "e.webp", "f.tif", "g.TIFF", "h.gif", "i.bmp", "s/t/k.png"]
    folder = write_photos(tmp_path / "photos", *names)
    write_photos(folder, ".hidden.png")
    (folder / "notes.md").write_text("mine")
    result = run("caption", "photos", *door, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "photos: 10 captions written, 0 already there, 0 failed\n"
    captions = {str(Path(name).with_suffix(".txt")): SAYS for name in names}
    assert texts(folder) == {**captions, "notes.md": "mine"}


def test_the_text_is_utf8_and_no_two_photos_share_one(tmp_path: Path) -> None:
    folder = write_photos(
        tmp_path / "photos", "a.jpg", "sub/a.png", "b.JPG", "b.jpg", "B.png", "c.png", "c.png.gif"
    )
    with captioning(says("ein Käse für 3 € 🧀")) as server:
        result = run("caption", "photos", "--server", server.url, cwd=tmp_path)
        expected = ["a", "b.JPG", "b.jpg", "B.png", "c", "c.png.gif", "sub/a"]
        assert texts(folder) == {f"{name}.txt": "ein Käse für 3 € 🧀" for name in expected}
        assert (result.returncode, len(server.asked)) == (0, 7)
        assert result.stderr == ("4 photos have namesakes: their captions keep the full name, as B.png.txt\n")
        again = run("caption", "photos", "--server", server.url, cwd=tmp_path)
        assert again.stdout == "photos: 0 captions written, 7 already there, 0 failed\n"
        assert len(server.asked) == 7


def test_what_has_a_caption_keeps_it(tmp_path: Path, door: tuple[str, ...], service: CaptionServer) -> None:
    folder = write_photos(tmp_path / "photos", "a.jpg", "b.jpg", "c.jpg")
    (folder / "a.txt").write_text("my own words")
    (folder / "b.txt").touch()  # empty: of a program that was stopped
    result = run("caption", "photos", *door, cwd=tmp_path)
    assert result.stdout == "photos: 2 captions written, 1 already there, 0 failed\n"
    assert texts(folder) == {
        "a.txt": "my own words",
        "b.txt": SAYS,
        "c.txt": SAYS,
    }
    if door != MODEL:
        assert service.names == ["b.jpg", "c.jpg"]


@pytest.mark.parametrize("option", ["--force", "-f"])
def test_force_describes_again(tmp_path: Path, option: str, door: tuple[str, ...]) -> None:
    folder = write_photos(tmp_path / "photos", "a.jpg")
    (folder / "a.txt").write_text("former words, longer than the ones that take their place")
    result = run("caption", "photos", *door, option, cwd=tmp_path)
    assert result.stdout == "photos: 1 captions written, 0 already there, 0 failed\n"
    assert texts(folder) == {"a.txt": SAYS}


def test_a_caption_has_at_most_50_tokens_or_as_many_as_told(
    tmp_path: Path, door: tuple[str, ...], service: CaptionServer
) -> None:
    folder = write_photos(tmp_path / "photos", "a.jpg")
    assert run("caption", "photos", *door, cwd=tmp_path).returncode == 0
    assert run("caption", "photos", *door, "-f", "--max-length", "2", cwd=tmp_path).returncode == 0
    assert texts(folder) == {"a.txt": "a picture of 30 by"}
    if door != MODEL:
        assert [asked.tasks for asked in service.asked] == [
            {"tasks": [{"operation_id": "caption", "type": "describe_image", "params": {"max_length": n}}]}
            for n in (50, 2)
        ]
    for wrong in ("0", "1025", "many"):
        result = run("caption", "photos", *door, "--max-length", wrong, cwd=tmp_path)
        assert (result.returncode, result.stderr.count("\n")) == (1, 1)
        assert "--max-length" in result.stderr


class Crowd:
    """Counts the requests that are being answered at the same time; each waits for company."""

    def __init__(self, wanted: int) -> None:
        self.most = self.now = 0
        self._wanted, self._lock, self._enough = wanted, threading.Lock(), threading.Event()

    def __call__(self, handler: Handler, asked: Asked) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)
            if self.now == self._wanted:
                self._enough.set()
        self._enough.wait(1)
        time.sleep(0.05)
        with self._lock:
            self.now -= 1
        tells_the_size(handler, asked)


@pytest.mark.parametrize(("options", "at_once"), [([], 4), (["--concurrency", "7"], 7)])
def test_the_service_is_asked_at_its_address_several_photos_at_a_time(
    tmp_path: Path, options: list[str], at_once: int
) -> None:
    folder = write_photos(tmp_path / "photos", *(f"{n:02}.jpg" for n in range(16)))
    crowd = Crowd(at_once)
    with captioning(crowd) as server:
        result = run("caption", "photos", "--server", f"{server.url}/here/", *options, cwd=tmp_path)
        assert {asked.path for asked in server.asked} == {"/here/analyze_image_upload/"}
    assert result.returncode == 0, result.stderr
    assert len(texts(folder)) == 16
    assert crowd.most == at_once


def test_a_photo_goes_to_the_service_as_it_is_under_its_own_type(
    tmp_path: Path, service: CaptionServer
) -> None:
    types = {"jpg": "jpeg", "png": "png", "webp": "webp", "gif": "gif", "bmp": "bmp", "tif": "tiff"}
    folder = write_photos(tmp_path / "photos", *(f"sub/of {suffix}.{suffix}" for suffix in types))
    write_photos(folder, "x.png").joinpath("x.png").rename(folder / "wrong.jpg")  # bytes tell, not names
    assert run("caption", "photos", "--server", service.url, cwd=tmp_path).returncode == 0
    assert {asked.name: asked.type for asked in service.asked} == {
        **{f"of {suffix}.{suffix}": f"image/{kind}" for suffix, kind in types.items()},
        "wrong.jpg": "image/png",
    }
    for asked in service.asked:
        [photo] = folder.rglob(asked.name)
        assert asked.content == photo.read_bytes()
        assert "Authorization" not in asked.headers


def test_what_fails_is_told_and_the_rest_goes_on(tmp_path: Path, door: tuple[str, ...]) -> None:
    folder = write_photos(tmp_path / "photos", "a.jpg", "e.jpg")
    (folder / "b.jpg").write_bytes(b"\xff\xd8\xffno photo")
    (folder / "c.jpg").touch()
    (folder / "d.jpg").symlink_to("nowhere.jpg")
    if door != MODEL:  # the service finds out that b.jpg is none
        (folder / "b.jpg").write_bytes(b"no photo")
    result = run("caption", "photos", *door, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stdout == "photos: 2 captions written, 0 already there, 3 failed\n"
    lines = sorted(result.stderr.splitlines())
    assert [line.partition(": ")[2].partition(": ")[0] for line in lines] == [
        f"photos/{name}.jpg" for name in "bcd"
    ]
    assert set(texts(folder)) == {"a.txt", "e.txt"}


@pytest.mark.parametrize("empty", ["", " \n\t ", "\x00\x1b", "\u202e\ufeff", None])
def test_an_empty_caption_is_a_failure_and_no_file(tmp_path: Path, empty: str | None) -> None:
    folder = write_photos(tmp_path / "photos", "a.jpg", "b.jpg")
    (folder / "b.txt").write_text("is there")
    with captioning(says(empty)) as server:
        result = run("caption", "photos", "--server", server.url, cwd=tmp_path)
    assert (result.returncode, result.stderr) == (2, "failed: photos/a.jpg: the caption is empty\n")
    assert texts(folder) == {"b.txt": "is there"}


def test_where_nothing_could_be_captioned_the_exit_code_is_1(tmp_path: Path, door: tuple[str, ...]) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    empty = run("caption", "photos", *door, cwd=tmp_path)
    assert (empty.returncode, empty.stderr) == (1, "error: photos: there is no photo in it\n")
    (folder / "a.jpg").write_bytes(b"no photo")
    failed = run("caption", "photos", *door, cwd=tmp_path)
    assert failed.returncode == 1
    assert failed.stdout == "photos: 0 captions written, 0 already there, 1 failed\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", *MODEL], "nowhere: there is no such folder; give a folder of photos"),
        (["photos/a.jpg", *MODEL], "photos/a.jpg: is not a folder; give a folder of photos"),
        (["photos", "--model", "blib"], "unknown captioner 'blib'; did you mean 'blip'?"),
        (["photos"], "'Salesforce/blip-image-captioning-base' is neither on this machine nor reachable"),
        (["photos", *MODEL, "--server", "http://127.0.0.1:1"], "leave --model or --server out"),
        (["photos", *MODEL, "--key-file", "key"], "--key-file is the key of a service; add --server"),
        (["photos", "--server", "127.0.0.1:1"], "is no URL to fetch"),
        (["photos", "--server", "http://127.0.0.1:1/?a=1"], "must not hold a query"),
        (["photos", "--server", "http://127.0.0.1:1", "--key-file", "key"], "key: No such file"),
        (["photos", "--server", "http://127.0.0.1:1", "--key-file", "empty"], "empty holds no key"),
        (["photos", "--server", "http://127.0.0.1:1", "--key-file", "bad"], "a request cannot carry"),
        (["photos", "--server", "http://127.0.0.1:1"], "does the service run? [unreachable]"),
    ],
)
def test_what_is_wrong_is_one_line_at_once(tmp_path: Path, arguments: list[str], said: str) -> None:
    folder = write_photos(tmp_path / "photos", *(f"{n}.jpg" for n in range(30)), "a.jpg")
    (tmp_path / "empty").write_text(" \n")
    (tmp_path / "bad").write_bytes(b"kei\xc3\xb1")
    result = run("caption", *arguments, cwd=tmp_path)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1, result.stderr
    assert said in result.stderr
    assert texts(folder) == {}


@pytest.mark.parametrize("given", ["file", "environment", "both"])
def test_the_key_is_shown_to_the_service_and_to_nobody_else(tmp_path: Path, given: str) -> None:
    write_photos(tmp_path / "photos", "a.jpg")
    (tmp_path / "key").write_text("sk-right-key\n")
    options = [] if given == "environment" else ["--key-file", "key"]
    variable = {"file": "", "environment": "sk-right-key", "both": "sk-other-key"}[given]

    def locked(handler: Handler, asked: Asked) -> None:
        key = asked.headers.get("Authorization")
        if key == "Bearer sk-right-key":
            return tells_the_size(handler, asked)
        return refuses(401, "no_key", f"no entry with {key}")(handler, asked)

    with captioning(locked) as server:
        arguments = ("caption", "photos", "--server", server.url)
        right = run(*arguments, *options, cwd=tmp_path, LMM_CLASSIFIER_API_KEY=variable)
        (tmp_path / "key").write_text("sk-wrong-key")
        wrong = run(*arguments, "-f", "--key-file", "key", cwd=tmp_path)
    assert (right.returncode, right.stderr) == (0, "")
    assert (wrong.returncode, wrong.stdout) == (1, "")
    assert "answers 401: no entry with Bearer ***; give the key of the service" in wrong.stderr
    assert wrong.stderr.count("\n") == 1
    assert "sk-" not in right.stdout + wrong.stderr
    assert texts(tmp_path / "photos") == {"a.txt": SAYS}


def started(folder: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "lmm_classifier", "caption", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


@pytest.mark.parametrize(
    ("sent", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]
)
def test_a_signal_ends_it_and_what_is_done_is_kept(tmp_path: Path, sent: signal.Signals, code: int) -> None:
    folder = write_photos(tmp_path / "photos", *(f"{n:02}.jpg" for n in range(40)))

    def slow(handler: Handler, asked: Asked) -> None:
        time.sleep(0.1)
        tells_the_size(handler, asked)

    with captioning(slow) as server:
        process = started(tmp_path, "photos", "--server", server.url)
        wait_until(lambda: len(list(folder.glob("*.txt"))) >= 5)
        process.send_signal(sent)
        _, errors = process.communicate(timeout=60)
        assert (process.returncode, errors.count("\n")) == (code, 0 if sent == signal.SIGKILL else 1), errors
        kept = {name: text for name, text in texts(folder).items() if name.endswith(".txt")}
        assert 5 <= len(kept) < 40
        assert set(kept.values()) == {SAYS}
        before = len(server.asked)
        if sent != signal.SIGKILL:  # what the service has answered is not lost
            assert len(kept) == before
        again = run("caption", "photos", "--server", server.url, cwd=tmp_path)
    assert again.stdout == f"photos: {40 - len(kept)} captions written, {len(kept)} already there, 0 failed\n"
    assert len(server.asked) == before + 40 - len(kept)


def test_ctrl_c_ends_the_waiting_for_a_service_that_is_busy(tmp_path: Path) -> None:
    write_photos(tmp_path / "photos", "a.jpg", "b.jpg")
    with captioning(refuses(503, "overloaded", Retry_After="60")) as server:
        process = started(tmp_path, "photos", "--server", server.url)
        wait_until(lambda: len(server.asked) >= 2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=40)
    assert (process.returncode, errors) == (130, "interrupted\n")
