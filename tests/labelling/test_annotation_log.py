"""What reviewers say: kept through crashes, told apart, never overwritten."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmm_classifier.errors import ConfigError, RunError
from lmm_classifier.labelling.annotation_log import Annotation, AnnotationLog, checked_label, log_of
from lmm_classifier.labelling.annotations import Annotations

SHA = "0" * 64
A, B, C = (("a.png", SHA), ("b.png", SHA), ("c/<b>.png", "1" * 64))


def read(folder: Path, reviewer: str = "anna") -> AnnotationLog:
    log = log_of(folder, reviewer)
    log.read()
    return log


def labels(log: AnnotationLog) -> dict[str, str | None]:
    return {path: decision.label for (path, _), decision in log.photos().items()}


def test_a_line_tells_a_key_press(tmp_path: Path) -> None:
    log = log_of(tmp_path, "anna")
    first = log.say("new", [A, B], "tulip", "group 7")
    log.undo()
    log.say("reject", [C])
    path = tmp_path / "decisions" / "anna.jsonl"
    told, back, last = map(json.loads, path.read_text().splitlines())
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", told.pop("time"))
    assert told == {
        "id": first.id,
        "reviewer": "anna",
        "action": "new",
        "photos": [["a.png", SHA], ["b.png", SHA]],
        "label": "tulip",
        "group": "group 7",
        "undoes": None,
    }
    assert (back["action"], back["undoes"], back["photos"]) == ("undo", first.id, [])
    assert (last["action"], last["label"]) == ("reject", None)
    assert read(tmp_path).photos() == log.photos()


@pytest.mark.parametrize(
    "name",
    [
        "../../x",
        "a/b",
        "a\\b",
        ".",
        "..",
        ".hidden",
        "%2e%2e",
        "-rf",
        "Ünal Ö",
        "x:y*?",
        "a\x00b\nc",
        "x" * 190,
    ],
)
def test_a_name_stays_in_the_folder(tmp_path: Path, name: str) -> None:
    log = log_of(tmp_path, name)
    log.say("skip", [A])
    assert [p.name for p in tmp_path.iterdir()] == ["decisions"]
    [path] = (tmp_path / "decisions").glob("[!.]*")
    assert path == log.path
    assert path.is_file()
    found = Annotations(tmp_path)
    found.read()
    assert [each.reviewer for each in found.logs] == [log.reviewer]


@pytest.mark.parametrize("name", ["", " \n", "\u200b", "ö" * 40])
def test_what_is_no_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="--reviewer"):
        log_of(tmp_path, name)


@pytest.mark.parametrize("text", ["", " \t", "unknown", "Unknown", "a/b", "a\\b", "..", ".x", "x" * 201])
def test_what_can_be_no_label_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="label"):
        checked_label(text)


def test_a_label_is_kept_in_one_form() -> None:
    assert checked_label("  Cafe\u0301 \n<b>\u202e ") == "Caf\u00e9 <b>"


def test_a_press_that_is_sent_twice_counts_once(tmp_path: Path) -> None:
    log, number = log_of(tmp_path, "anna"), "a" * 32
    first = log.say("accept", [A], "red", number=number)
    assert log_of(tmp_path, "anna").say("accept", [A], "red", number=number) == first
    log.say("accept", [B], "red")
    undone = log.undo("b" * 32)
    assert log.undo("b" * 32) == undone
    assert labels(read(tmp_path)) == {"a.png": "red"}
    assert len(log.path.read_text().splitlines()) == 3


def test_undo_goes_back_press_by_press(tmp_path: Path) -> None:
    log = log_of(tmp_path, "anna")
    assert log.undo() is None
    log.say("accept", [A], "red")
    log.say("relabel", [A, B], "green", "g")
    log.say("reject", [A])
    seen = [labels(log)]
    while log.undo():
        seen.append(labels(log))
    assert seen == [
        {"a.png": None, "b.png": "green"},
        {"a.png": "green", "b.png": "green"},
        {"a.png": "red"},
        {},
    ]
    assert len(log.path.read_text().splitlines()) == 6  # nothing was taken out of the file


def test_what_a_crash_cut_off_is_reported_and_passed_over(tmp_path: Path) -> None:
    whole = log_of(tmp_path, "anna")
    whole.say("accept", [A], "red")
    kept = whole.path.stat().st_size
    whole.say("accept", [B], "green", number="b" * 32)
    content = whole.path.read_bytes()
    for end in range(kept + 1, len(content)):
        whole.path.write_bytes(content[:end])
        log = read(tmp_path)
        assert (labels(log), log.cut_off) == ({"a.png": "red"}, (2,))
        log.say("accept", [B], "blue", number="b" * 32)  # it was never answered: the page sends it again
        for after in (log, read(tmp_path)):
            assert (labels(after), after.cut_off) == ({"a.png": "red", "b.png": "blue"}, (2,))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", "is no decision"),
        (b"\xff", "is no decision"),
        (b"[" * 9999, "is no decision"),
        ({"action": "approve"}, "action"),
        ({"label": None}, "has a label"),
        ({"action": "skip"}, "has no label"),
        ({"photos": []}, "is about photos"),
        ({"photos": [["a.png", "x"]]}, "photos.0.1"),
        ({"time": "yesterday"}, "time"),
        ({"reviewer": "ben"}, "by 'ben'"),
        ({"id": "a" * 32}, "repeats the id"),
        ({"more": 1}, "more"),
        (
            {"action": "undo", "label": None, "photos": [], "undoes": "c" * 32},
            "takes back what does not stand",
        ),
        ({"undoes": "a" * 32}, "takes nothing back"),
    ],
)
def test_a_line_that_was_changed_is_named(
    tmp_path: Path, line: bytes | dict[str, object], problem: str
) -> None:
    log = log_of(tmp_path, "anna")
    log.say("accept", [A], "red", number="a" * 32)
    if isinstance(line, dict):
        line = json.dumps(json.loads(log.path.read_bytes()) | {"id": "b" * 32} | line).encode()
    with log.path.open("ab") as file:
        file.write(line + b"\n")
    for _ in range(2):  # it is not passed over the second time
        with pytest.raises(RunError, match=re.escape(f"{log.path}:2 ")) as raised:
            log.read()
        assert problem in str(raised.value)
        with pytest.raises(RunError):
            log.say("accept", [B], "red")
    assert labels(log) == {"a.png": "red"}


def test_a_log_that_lost_lines_is_not_written_on(tmp_path: Path) -> None:
    log = log_of(tmp_path, "anna")
    log.say("accept", [A], "red")
    log.path.write_bytes(b"")
    with pytest.raises(RunError, match="lost its end"):
        log.say("accept", [B], "red")
    log.path.unlink()
    with pytest.raises(RunError, match="is gone"):
        log.say("accept", [B], "red")


def said(folder: Path, *answers: tuple[str, str, str | None]) -> Annotations:
    """All of photo A: (reviewer, action, label)."""
    verdicts = Annotations(folder)
    for reviewer, action, label in answers:
        verdicts.log(reviewer).say(action, [A], label)  # type: ignore[arg-type]
    verdicts = Annotations(folder)
    verdicts.read()
    return verdicts


@pytest.mark.parametrize(
    ("answers", "conflict", "settled"),
    [
        ([("anna", "accept", "red"), ("ben", "relabel", "red")], False, "red"),
        ([("anna", "accept", "red"), ("ben", "relabel", "green")], True, None),
        ([("anna", "accept", "red"), ("ben", "reject", None)], True, None),
        ([("anna", "reject", None), ("ben", "reject", None)], False, None),
        ([("anna", "accept", "red"), ("ben", "skip", None)], False, "red"),
        ([("anna", "accept", "red"), ("ben", "accept", "green"), ("ben", "relabel", "red")], False, "red"),
        ([("anna", "accept", "red"), ("anna", "skip", None)], False, None),
    ],
)
def test_reviewers_conflict_until_they_agree(
    tmp_path: Path, answers: list[tuple[str, str, str | None]], conflict: bool, settled: str | None
) -> None:
    verdicts = said(tmp_path, *answers)
    assert list(verdicts.conflicts()) == ([A] if conflict else [])
    assert [decision.label for decision in verdicts.settled().values() if decision.label] == (
        [settled] if settled else []
    )
    assert sum(len(log.path.read_text().splitlines()) for log in verdicts.logs) == len(answers)


ACTIONS = st.tuples(
    st.sampled_from(["anna", "ben"]),
    st.sampled_from(["accept", "reject", "skip", "undo"]),
    st.sets(st.sampled_from([A, B, C]), min_size=1),
    st.sampled_from(["red", "green"]),
)
FOLDERS = count()


@settings(max_examples=40, deadline=None)
@given(st.lists(ACTIONS, max_size=12))
def test_logs_fold_as_a_plain_list_of_presses_does(
    tmp_path_factory: pytest.TempPathFactory, presses: list[tuple[str, str, set[tuple[str, str]], str]]
) -> None:
    folder = tmp_path_factory.mktemp(f"fold{next(FOLDERS)}")
    stands: dict[str, list[Annotation]] = {"anna": [], "ben": []}
    for reviewer, action, photos, label in presses:
        log = log_of(folder, reviewer)  # a new process each time
        if action == "undo":
            assert log.undo() == (stands[reviewer].pop() if stands[reviewer] else None)
        else:
            given = label if action == "accept" else None
            stands[reviewer].append(log.say(action, sorted(photos), given))  # type: ignore[arg-type]
    verdicts = Annotations(folder)
    verdicts.read()
    expected = {
        photo: {
            who: [d for d in all_ if photo in d.photos][-1]
            for who, all_ in stands.items()
            if any(photo in d.photos for d in all_)
        }
        for photo in (A, B, C)
    }
    assert verdicts.photos() == {photo: by for photo, by in expected.items() if by}


SPEAKER = """
import sys
from pathlib import Path
from lmm_classifier.labelling.annotation_log import log_of
log = log_of(Path(sys.argv[1]), "anna")
for i in range(int(sys.argv[2])):
    made = log.undo() if i % 5 == 4 else log.say("accept", [(f"{sys.argv[3]}-{i}.png", "0" * 64)] * 1, "red")
    print(log.path.stat().st_size, made.id, flush=True)
"""


def speaker(folder: Path, presses: int, name: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SPEAKER, str(folder), str(presses), name]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_of_a_reviewer_do_not_damage_the_log(tmp_path: Path) -> None:
    both = [speaker(tmp_path, 60, name) for name in "xy"]
    assert [process.wait() for process in both] == [0, 0]
    log = read(tmp_path)
    told = [json.loads(line) for line in log.path.read_text().splitlines()]
    assert len(told) == 120
    undone = [line["undoes"] for line in told if line["action"] == "undo"]
    assert len(undone) == len(set(undone)) == 24
    assert len(log.standing) == 120 - 2 * 24
    assert log.cut_off == ()
    for process in both:
        assert process.stdout is not None
        process.stdout.close()


def test_what_was_answered_outlives_a_kill(tmp_path: Path) -> None:
    randomness, answered = random.Random(3), []  # noqa: S311
    for attempt in range(4):
        process = speaker(tmp_path, 1000, str(attempt))
        assert process.stdout is not None
        presses = range(randomness.randint(1, 12))
        answered += [process.stdout.readline().split()[1] for _ in presses]
        process.send_signal(signal.SIGKILL)
        process.communicate()
    log = read(tmp_path)
    assert all(log.find(number) for number in answered)


FULL = """
import resource, sys
from pathlib import Path
from lmm_classifier.errors import RunError
from lmm_classifier.labelling.annotation_log import log_of
log = log_of(Path(sys.argv[1]), "anna")
log.say("accept", [("a.png", "0" * 64)], "red")
resource.setrlimit(resource.RLIMIT_FSIZE, (log.path.stat().st_size + 40, resource.RLIM_INFINITY))
try:
    log.say("accept", [("b.png", "0" * 64)], "red")
except RunError as error:
    print(error)
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs POSIX limits")
def test_a_full_disk_is_told_and_costs_nothing_else(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("cannot write ")
    log = read(tmp_path)
    assert (labels(log), log.cut_off) == ({"a.png": "red"}, (2,))
    log.say("accept", [B], "green")
    assert labels(read(tmp_path)) == {"a.png": "red", "b.png": "green"}
