"""Waiting for a model has an end."""

from __future__ import annotations

import atexit
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from typing import TypeVar

from lmm_classifier.errors import OutOfTimeError

_T = TypeVar("_T")

MOST_ABANDONED = 4
"""Calls about one thing that nobody waits for any more; while so many go on, no other is begun."""
_FAREWELL_S = 2.0
"""At exit, abandoned calls have this long: one that is cut off in a library may take the process down."""
_lock = threading.Lock()
_running: Counter[Hashable] = Counter()
_threads: set[threading.Thread] = set()


def within_deadline(call: Callable[[], _T], due: float | None, about: Hashable) -> _T:
    """What the call returns, if it does until `due` on `time.monotonic`; if not, it goes on by itself.

    Args:
        call: runs in a thread of its own, which does not keep the process alive.
        due: None waits as long as it takes, in this thread.
        about: what must not be asked by more and more abandoned calls, such as a model.

    Raises:
        OutOfTimeError: it does not, or too many calls about it are still going on.
    """
    if due is None:
        return call()
    left = min(due - time.monotonic(), threading.TIMEOUT_MAX)
    if left <= 0:
        raise OutOfTimeError("the time for the answer is up")
    with _lock:
        if _running[about] >= MOST_ABANDONED:
            raise OutOfTimeError("earlier questions are still being answered")
        _running[about] += 1
    answer: Future[_T] = Future()
    thread = threading.Thread(target=_run, args=(call, answer, about), name="in-time", daemon=True)
    with _lock:
        _threads.add(thread)
    thread.start()
    try:
        return answer.result(left)
    except TimeoutError as error:
        raise OutOfTimeError("the time for the answer is up") from error


def _run(call: Callable[[], _T], answer: Future[_T], about: Hashable) -> None:
    try:
        answer.set_result(call())
    except BaseException as error:  # noqa: BLE001 -- whoever waits raises it
        answer.set_exception(error)
    finally:
        with _lock:
            _running[about] -= 1
            _threads.discard(threading.current_thread())


@atexit.register
def _farewell() -> None:
    end = time.monotonic() + _FAREWELL_S
    for thread in tuple(_threads):
        thread.join(max(end - time.monotonic(), 0))
