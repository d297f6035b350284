"""The review over HTTP, as its page and strangers ask it."""

from __future__ import annotations

import io
import random
import shutil
import signal
import uuid
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from lmm_classifier.labelling.run_store import LabellingRun
from lmm_classifier.review.thumbnails import below
from lmm_classifier.service.errors import HttpError
from reviewed import MARKUP, Reviewing, attached, fresh, grouped, lines, make_run, reviewing
from served import started
from shell import run as shell


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_run(tmp_path_factory.mktemp("labelled"))


@pytest.fixture
def run(made: Path, tmp_path: Path) -> Path:
    return fresh(made, tmp_path)


@pytest.fixture
def anna(run: Path, made: Path) -> Iterator[Reviewing]:
    with reviewing(run, order=grouped, corpus=made.parent / "corpus") as review:
        yield review


def row_of(review: Reviewing, path: str) -> int:
    found: int = review.run.columns("path")["path"].to_pylist().index(path)
    return found


def test_the_queue_has_every_photo_that_can_be_read(run: Path) -> None:
    with reviewing(run) as review:
        about, overview = review.get("/run").json, review.get("/overview").json
        assert (about["run"], about["finished"], about["labels"]) == ("run", True, ["blue", "green", "red"])
        assert (about["pictured"], overview["reviewer"], overview["photos"]) == (False, "anna", 19)
        assert overview["states"] == {"open": 19}
        queue = review.queue()
        assert len({entry["key"] for entry in queue}) == 19
        statuses = [review.get(f"/photos/{e['rows'][0]}").json["answer"]["status"] for e in queue]
        assert statuses == sorted(statuses, key=["uncertain", "unknown", "known"].index)
        paged: list[dict[str, Any]] = []
        while found := review.get(f"/queue?limit=7&after={paged[-1]['key'] if paged else ''}").json:
            paged += found
        assert paged == queue


def test_a_photo_comes_with_its_evidence(anna: Reviewing) -> None:
    row = row_of(anna, "mixed-00.png")
    told = anna.get(f"/photos/{row}").json
    answer = anna.run.row(row).answer
    assert answer is not None
    assert (told["path"], told["state"], told["said"]) == ("mixed-00.png", "open", [])
    assert told["answer"]["reason"] == answer.reason
    assert [c["label"] for c in told["answer"]["candidates"]] == [c.label for c in answer.candidates]
    assert [n["path"] for n in told["answer"]["neighbours"]] == [n.path for n in answer.neighbours]
    assert anna.get(f"/photos/{row_of(anna, 'broken.jpg')}").status == 404


def test_an_answer_is_on_the_disk_when_it_is_answered(anna: Reviewing) -> None:
    row = row_of(anna, "mixed-00.png")
    number = uuid.uuid4().hex
    for _ in range(2):  # the page did not hear the first one
        reply = anna.decide(f"photo-{row}", "new", [row], "tulip", id=number)
        assert reply.status == 200, reply.body
        assert [line["id"] for line in lines(anna.run.folder)] == [number]
    assert reply.json["entry"]["state"] == "mine"
    assert reply.json["entry"]["said"] == [{"reviewer": "anna", "action": "new", "label": "tulip"}]
    assert reply.json["overview"]["labels"] == {"tulip": 1}
    assert reply.json["overview"]["new_labels"] == ["tulip"]
    [line] = lines(anna.run.folder)
    assert line["photos"] == [["mixed-00.png", anna.run.row(row).sha256]]
    assert f"photo-{row}" not in {entry["key"] for entry in anna.queue()}
    assert [entry["key"] for entry in anna.queue("mine")] == [f"photo-{row}"]
    other = row_of(anna, "mixed-01.png")
    assert anna.decide(f"photo-{other}", "relabel", [other], "tulip").status == 200
    undone = [anna.undo().json for _ in range(3)]
    assert [each["label"] for each in undone] == ["tulip", "tulip", None]
    assert undone[0]["entry"]["key"] == f"photo-{other}"
    assert undone[-1]["overview"]["states"] == {"open": 19}


ROW = "<row>"


@pytest.mark.parametrize(
    ("change", "status", "code"),
    [
        ({"item": "photo-999"}, 404, "no_photo"),
        ({"item": "photo-\u0663"}, 404, "no_item"),
        ({"item": "photo-" + "9" * 30}, 404, "no_item"),
        ({"item": "../../etc/passwd"}, 404, "no_item"),
        ({"rows": [0, 1]}, 400, "not_of_item"),
        ({"rows": [-1]}, 400, "not_of_item"),
        ({"rows": []}, 422, "malformed"),
        ({"label": None}, 400, "label"),
        ({"action": "reject"}, 400, "label"),
        ({"action": "undo"}, 422, "malformed"),
        ({"action": "accept", "label": "tulip"}, 409, "not_suggested"),
        ({"label": "tulip"}, 409, "new_label"),
        ({"action": "new", "label": "Red"}, 409, "known_label"),
        ({"action": "new", "label": "../x"}, 400, "bad_label"),
        ({"action": "new", "label": "unknown"}, 400, "bad_label"),
        ({"action": "new", "label": " \u200b"}, 400, "bad_label"),
        ({"id": "../x"}, 422, "malformed"),
        ({"review": "another"}, 409, "other_review"),
        ({"reviewer": "ben"}, 422, "malformed"),
    ],
)
def test_what_does_not_fit_is_refused_and_not_stored(
    anna: Reviewing, change: dict[str, Any], status: int, code: str
) -> None:
    row = row_of(anna, "mixed-00.png")
    body = {"item": f"photo-{row}", "action": "relabel", "rows": [row], "label": "red"} | change
    reply = anna.decide(**body)
    assert (reply.status, reply.json["code"]) == (status, code)
    assert lines(anna.run.folder) == []


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", {"host": "evil.test"}, 403),
        ("GET", "/photos/1/picture", {"host": "evil.test:80"}, 403),
        ("POST", "/undo", {"host": "evil.test"}, 403),
        ("GET", "/run", {"sec-fetch-site": "cross-site"}, 403),
        ("POST", "/undo", {"sec-fetch-site": "cross-site"}, 403),
        ("POST", "/undo", {"sec-fetch-site": "same-site"}, 403),  # another server of this machine
        ("POST", "/undo", {"sec-fetch-site": "same-origin"}, 200),
        ("GET", "/decisions", {}, 405),
        ("GET", "/decisions/anna.jsonl", {}, 404),
        ("GET", "/..%2f..%2frun.json", {}, 404),
        ("GET", "/docs", {}, 404),
        ("GET", "/photos/-1/picture", {}, 404),
        ("GET", "/photos/99999999999999999999/picture", {}, 404),
        ("GET", "/photos/..%2f..%2fetc%2fpasswd/picture", {}, 404),
        ("GET", "/photos/1/picture?size=raw", {}, 422),
        ("GET", "/photos/1/neighbours/-1/picture", {}, 404),
        ("GET", "/photos/1/neighbours/99/picture", {}, 404),
        ("GET", "/queue?limit=100000", {}, 422),
        ("GET", "/queue?show=everything", {}, 422),
        ("GET", "/members?item=group-none", {}, 404),
    ],
)
def test_strangers_and_odd_requests_are_refused(
    anna: Reviewing, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    content = {} if method == "GET" else {"json": {"id": "a" * 32, "review": anna.review}}
    reply = anna.served.ask(method, path, headers, **content)
    assert reply.status == status, reply.body
    assert reply.headers["x-content-type-options"] == "nosniff"
    assert "default-src 'self'" in reply.headers["content-security-policy"]


def test_a_body_is_limited(anna: Reviewing) -> None:
    with closing(anna.served.connect()) as client:
        head = f"host: 127.0.0.1\r\ncontent-type: application/json\r\ncontent-length: {2**21}\r\n\r\n"
        client.sendall(f"POST /decisions HTTP/1.1\r\n{head}".encode())
        assert client.recv(1000).startswith(b"HTTP/1.1 413 ")


def test_pictures_are_made_anew(anna: Reviewing, made: Path) -> None:
    row = row_of(anna, MARKUP)
    raw = (made.parent / "photos" / MARKUP).read_bytes()
    for size, shape in (("large", (1024, 410)), ("small", (256, 102))):
        reply = anna.get(f"/photos/{row}/picture?size={size}")
        assert (reply.status, reply.headers["content-type"]) == (200, "image/webp")
        with Image.open(io.BytesIO(reply.body)) as shown:
            assert (shown.format, shown.size) == ("WEBP", shape)
        assert reply.body not in raw
    assert anna.get(f"/photos/{row}/neighbours/0/picture").headers["content-type"] == "image/webp"


def test_without_the_corpus_neighbours_have_no_pictures(run: Path) -> None:
    with reviewing(run) as review:
        assert review.get("/photos/1/neighbours/0/picture").status == 404


def test_a_photo_that_changed_or_is_gone_is_not_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path, mixed=2, yellow=0)
    photos = tmp_path / "photos"
    with reviewing(run, corpus=tmp_path / "corpus") as review:
        first, second, third = (row_of(review, n) for n in ("mixed-00.png", "mixed-01.png", MARKUP))
        shutil.copy(photos / "mixed-01.png", photos / "mixed-00.png")
        (photos / "mixed-01.png").write_bytes(b"")
        (photos / MARKUP).unlink()
        shutil.rmtree(tmp_path / "corpus")
        replies = [review.get(f"/photos/{row}/picture") for row in (first, second, third)]
        assert [(r.status, r.json["code"]) for r in replies] == [
            (409, "changed"),
            (409, "changed"),
            (404, "gone"),
        ]
        assert review.get(f"/photos/{first}/neighbours/0/picture").status == 404
        assert (
            review.decide(f"photo-{third}", "reject", [third]).status == 200
        )  # it can be decided all the same


@pytest.mark.parametrize("path", ["../secret.png", "a/../../secret.png", "/etc/secret.png"])
def test_a_neighbour_outside_the_corpus_is_not_shown(tmp_path: Path, path: str) -> None:
    assert below(tmp_path, "a/b.png") == tmp_path / "a" / "b.png"
    with pytest.raises(HttpError, match="not in the corpus"):
        below(tmp_path, path)


def test_a_group_is_decided_at_once_but_for_what_is_left_out(anna: Reviewing) -> None:
    [group, *_] = anna.queue()
    assert (group["kind"], group["size"]) == ("group", 6)
    members = [member["row"] for member in anna.served.ask("GET", "/members?item=group-a%2Fb%20%3Ci%3E").json]
    reply = anna.decide(group["key"], "new", members[:4], "yellow")
    assert reply.status == 200, reply.body
    assert [entry["key"] for entry in reply.json["rest"]] == [f"photo-{row}" for row in members[4:]]
    [line] = lines(anna.run.folder)
    assert (line["group"], len(line["photos"])) == ("a/b <i>", 4)
    keys = [entry["key"] for entry in anna.queue()]
    assert keys[:2] == [f"photo-{row}" for row in members[4:]]
    assert group["key"] not in keys
    for row in members[4:]:
        assert anna.decide(f"photo-{row}", "skip", [row]).status == 200
    assert [entry["key"] for entry in anna.queue("skipped")] == [f"photo-{row}" for row in members[4:]]
    assert [entry["key"] for entry in anna.queue("mine")] == [group["key"]]
    for _ in range(3):
        undone = anna.undo().json
    assert undone["entry"] == group
    assert anna.queue()[0] == group


def test_two_reviewers_share_the_queue_and_their_conflicts_are_listed(anna: Reviewing) -> None:
    same, different, skipped = (row_of(anna, f"mixed-0{i}.png") for i in range(3))
    with reviewing(anna.run.folder, "ben") as ben:
        for review, label in ((anna, "red"), (ben, "green")):
            for row, given in ((same, "blue"), (different, label)):
                assert review.decide(f"photo-{row}", "relabel", [row], given).status == 200
        ben.decide(f"photo-{skipped}", "skip", [skipped])
        for review in (anna, ben):
            assert review.get("/overview").json["conflicts"] == 1
            [conflict] = review.queue("conflict")
            assert conflict["key"] == f"photo-{different}"
            assert [(s["reviewer"], s["label"]) for s in conflict["said"]] == [
                ("anna", "red"),
                ("ben", "green"),
            ]
        assert f"photo-{skipped}" in {entry["key"] for entry in anna.queue()}  # ben has said nothing of it
        agreed = ben.decide(f"photo-{different}", "relabel", [different], "red").json
        assert (agreed["entry"]["state"], agreed["overview"]["conflicts"]) == ("mine", 0)
        assert ben.undo().json["overview"]["conflicts"] == 1
        ben.decide(f"photo-{different}", "reject", [different])
        assert anna.get("/overview").json["conflicts"] == 1
    assert [len(lines(anna.run.folder, name)) for name in ("anna", "ben")] == [2, 6]


def test_a_log_that_is_damaged_meanwhile_stops_the_review(anna: Reviewing) -> None:
    log = anna.run.folder / "decisions" / "ben.jsonl"
    log.parent.mkdir()
    log.write_text("no decision\n")
    reply = anna.decide("photo-2", "skip", [2])
    assert (reply.status, reply.json["code"]) == (503, "unusable")
    assert lines(anna.run.folder) == []


def test_decisions_about_photos_of_another_run_are_counted_and_kept(run: Path) -> None:
    with reviewing(run) as review:
        review.decide("photo-2", "skip", [2])
    log = run / "decisions" / "anna.jsonl"
    sha256 = LabellingRun(run).row(2).sha256
    assert sha256 is not None
    log.write_text(log.read_text().replace(sha256, "0" * 64))
    with reviewing(run) as review:
        told = review.get("/overview").json
        assert (told["strays"], told["states"]) == (1, {"open": 19})
        undone = review.undo().json
        assert (undone["action"], undone["entry"]) == ("skip", None)


def test_a_kill_between_answers_loses_none(run: Path) -> None:
    randomness, answered = random.Random(5), []  # noqa: S311
    for _ in range(2):
        command = ("review", run, "--reviewer", "anna", "--no-open")
        with started(run / "log", *command) as (served, process):
            review = attached(served, LabellingRun(run))
            for _ in range(randomness.randint(1, 4)):
                [entry] = review.get("/queue?limit=1").json
                number = uuid.uuid4().hex
                assert review.decide(entry["key"], "skip", entry["rows"], id=number).status == 200
                answered.append((number, entry["rows"]))
            process.process.send_signal(signal.SIGKILL)
            process.process.wait()
    rows = [rows[0] for _, rows in answered]
    assert len(set(rows)) == len(rows)
    assert [line["id"] for line in lines(run)] == [number for number, _ in answered]


def test_what_is_wrong_is_said_in_a_line(tmp_path: Path) -> None:
    result = shell("review", tmp_path, "--host", "0.0.0.0", cwd=tmp_path)  # noqa: S104
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "0.0.0.0 can be reached from other machines" in result.stderr
    result = shell("review", tmp_path, cwd=tmp_path)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert "is no labelling run" in result.stderr


def test_it_tells_of_a_line_that_was_cut_off_and_ctrl_c_stops_it(run: Path) -> None:
    with reviewing(run) as review:
        review.decide("photo-2", "skip", [2])
    log = run / "decisions" / "anna.jsonl"
    log.write_bytes(log.read_bytes() + b'{"id": "')
    with started(run / "log", "review", run, "--reviewer", "anna", "--no-open") as (served, process):
        assert f"{log}:2 was cut off by a crash" in (run / "log").read_text()
        assert served.ask("GET", "/").headers["content-type"].startswith("text/html")
        assert served.ask("GET", "/overview").json["states"] == {"open": 18, "skipped": 1}
        process.process.send_signal(signal.SIGINT)
        assert process.process.wait(10) == 130
    assert "Traceback" not in process.log.read_text()
