"""The clock, for tests that set it, wait for something, or let what waits not wait.

What a test asserts of seconds stands in the test itself, which is then marked `timing`.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from types import SimpleNamespace

import pytest


def from_now(seconds: float) -> float:
    """A point of time as deadlines have it: so many seconds from now, or ago where they are negative."""
    return time.monotonic() + seconds


def wait_until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Looks again and again; it never took so long unless something hangs."""
    end = from_now(seconds)
    while not condition():
        assert time.monotonic() < end, f"in vain for {seconds:g} s"
        time.sleep(0.01)


def without_waiting(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """From now on a fetch that is tried again later is tried at once, and its clock says it is later.

    Returns:
        the seconds of each pause, as they come.
    """
    pauses: list[float] = []

    class Unawaited(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            pauses.append(timeout or 0.0)
            return self.is_set()

    clock = SimpleNamespace(monotonic=lambda: from_now(sum(pauses)))
    events = SimpleNamespace(Event=Unawaited)
    for module in ("client", "connection"):
        monkeypatch.setattr(f"lmm_classifier.fetch.{module}.time", clock)
    monkeypatch.setattr("lmm_classifier.fetch.client.threading", events)
    monkeypatch.setattr("lmm_classifier.captioning.server.threading", events)
    return pauses
