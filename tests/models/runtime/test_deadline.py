from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from clock import from_now, wait_until
from lmm_classifier import registry
from lmm_classifier.errors import OutOfTimeError
from lmm_classifier.models.loading import load_chooser, load_encoder
from lmm_classifier.models.runtime.deadline import MOST_ABANDONED, within_deadline
from lmm_classifier.models.spec import ModelSpec

SLACK_S = 0.1  # what a busy machine takes to wake a thread


def test_what_comes_in_time_is_returned_and_what_fails_in_time_raised() -> None:
    assert within_deadline(lambda: 3, from_now(5), "a") == 3
    assert within_deadline(lambda: 3, None, "a") == 3
    assert within_deadline(lambda: 3, from_now(1e12), "a") == 3
    with pytest.raises(ZeroDivisionError):
        within_deadline(lambda: 1 // 0, from_now(5), "a")


def test_who_has_waited_until_it_is_due_gets_an_error_though_the_call_goes_on() -> None:
    over, ended = threading.Event(), threading.Event()
    with pytest.raises(OutOfTimeError):
        within_deadline(lambda: over.wait(20) and ended.set(), from_now(0.1), "b")
    assert not ended.is_set()
    over.set()
    assert ended.wait(20)


@pytest.mark.timing
def test_nobody_waits_longer_than_it_is_due() -> None:
    over = threading.Event()
    began = time.monotonic()
    with pytest.raises(OutOfTimeError):
        within_deadline(lambda: over.wait(20), began + 0.5, "b")
    took = time.monotonic() - began
    over.set()
    assert 0.5 <= took <= 0.55 + SLACK_S


def test_what_is_late_already_is_not_begun() -> None:
    begun: list[int] = []
    with pytest.raises(OutOfTimeError):
        within_deadline(lambda: begun.append(1), from_now(-1), "c")
    assert not begun


def test_calls_that_are_stuck_hold_up_no_other_thing_and_are_not_added_to() -> None:
    over = threading.Event()
    for _ in range(MOST_ABANDONED):
        with pytest.raises(OutOfTimeError):
            within_deadline(lambda: over.wait(20), from_now(0.02), "stuck")
    with pytest.raises(OutOfTimeError, match="earlier questions are still being answered"):
        within_deadline(lambda: 3, from_now(5), "stuck")
    assert within_deadline(lambda: 3, from_now(5), "another") == 3
    over.set()
    wait_until(lambda: not any(thread.name == "in-time" for thread in threading.enumerate()))
    assert within_deadline(lambda: 3, from_now(5), "stuck") == 3


def test_an_abandoned_call_does_not_keep_the_process() -> None:
    program = """
import threading
import time
from lmm_classifier.errors import OutOfTimeError
from lmm_classifier.models.runtime.deadline import within_deadline
try:
    within_deadline(threading.Event().wait, time.monotonic() + 0.1, "x")
except OutOfTimeError:
    print("late")
"""
    command = [sys.executable, "-c", program]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert (ended.stdout, ended.stderr) == ("late\n", "")


class SlowToOpen:
    begun, may_go_on = threading.Event(), threading.Event()

    def __init__(self, spec: ModelSpec) -> None:
        self.begun.set()
        self.may_go_on.wait(20)


def test_nobody_waits_for_another_model_that_is_being_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILTINS["chooser"], "slow", registry.Entry(f"{__name__}:SlowToOpen"))
    load_encoder(ModelSpec("fake"))
    opening = threading.Thread(target=load_chooser, args=(ModelSpec("slow", "test_in_time"),))
    opening.start()
    assert SlowToOpen.begun.wait(20)
    load_encoder(ModelSpec("fake"))
    load_encoder(ModelSpec("fake", "another"))
    assert opening.is_alive()
    SlowToOpen.may_go_on.set()
    opening.join()
