"""Work in threads, handed on in order."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from lmm_classifier.storage.prefetch import prefetch_map


def test_results_come_in_the_order_of_the_tasks() -> None:
    def work(n: int) -> int:
        time.sleep(0.002 * (n % 3 == 0))  # the first of three is done last
        return n * n

    assert list(prefetch_map(work, range(20), 4, 8)) == [n * n for n in range(20)]
    assert list(prefetch_map(work, [], 4, 8)) == []


@pytest.mark.parametrize(("workers", "ahead"), [(1, 1), (4, 8), (8, 4)])
def test_no_more_is_begun_than_may_wait(workers: int, ahead: int) -> None:
    begun: list[int] = []

    def tasks() -> Iterator[int]:
        for n in range(100):
            begun.append(n)
            yield n

    results = prefetch_map(lambda n: n, tasks(), workers, ahead)
    for seen in range(1, 50):
        next(results)
        assert len(begun) - seen < ahead
    results.close()
    assert len(begun) < 60


def test_an_error_comes_in_its_place() -> None:
    results = prefetch_map(lambda n: 1 // n, [1, 1, 0, 1], 2, 4)
    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_no_thread_is_left_when_the_taker_goes() -> None:
    before = threading.active_count()
    results = prefetch_map(lambda n: n, range(100), 4, 8)
    next(results)
    results.close()
    assert threading.active_count() == before


def test_work_that_waits_is_told_that_nobody_does_any_more() -> None:
    stop, waiting = threading.Event(), threading.Event()
    told: list[bool] = []

    def work(n: int) -> int:
        if n:
            waiting.set()
            told.append(stop.wait(30))
        return n

    results = prefetch_map(work, range(100), 4, 8, stop)
    assert next(results) == 0
    assert waiting.wait(30)
    results.close()
    assert stop.is_set()
    assert set(told) == {True}  # none has waited to its end
