"""How much a reranker is asked, and until when: cases computed by hand, with a clock that a test sets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from lmm_classifier.errors import ModelError, OutOfTimeError
from lmm_classifier.rerank.budget import Budget, asked_in_time, passes
from lmm_classifier.rerank.requests import RerankRequest
from lmm_classifier.types import Choice, Sample

PIXEL = Image.new("RGB", (1, 1))


def request(n_options: int = 2, arrived: float = 100.0) -> RerankRequest:
    sample = replace(Sample.from_image("photo", PIXEL), arrived=arrived)
    return RerankRequest(sample, 0, 0, PIXEL, tuple("abcdefgh"[:n_options]), 0.5)


def choice(of: RerankRequest) -> Choice:
    return Choice(of.options, np.zeros(len(of.options), np.float32))


class TestShare:
    @pytest.mark.parametrize(
        ("max_share", "regions", "expected"),
        [(None, 10, None), (1.0, 10, 10), (0.35, 10, 3), (0.29, 100, 29), (0.01, 10, 1), (0.5, 1, 1)],
    )
    def test_rounded_down_but_one_at_least(
        self, max_share: float | None, regions: int, expected: int | None
    ) -> None:
        assert Budget(0.0, max_share=max_share).share(regions) == expected


class TestEnd:
    def test_without_limits_there_is_none(self) -> None:
        budget = Budget(100.0)
        assert not budget.is_timed
        assert budget.end(request()) == (math.inf, "")

    def test_the_seconds_of_a_batch_count_from_its_start(self) -> None:
        budget = Budget(100.0, max_seconds=2.0)
        assert budget.is_timed
        assert budget.end(request(arrived=95.0)) == (
            102.0,
            "max_seconds: the 2 s for this batch have passed",
        )

    def test_the_deadline_of_a_photo_counts_from_its_arrival(self) -> None:
        budget = Budget(100.0, deadline=4.5)
        assert budget.is_timed
        assert budget.end(request(arrived=97.0)) == (
            101.5,
            "deadline: 4.5 s have passed since the photo came in",
        )

    def test_the_earlier_of_both_counts(self) -> None:
        budget = Budget(100.0, max_seconds=2.0, deadline=4.0)
        assert budget.end(request(arrived=97.0))[0] == 101.0
        assert budget.end(request(arrived=99.0))[0] == 102.0

    def test_the_first_end_is_that_of_no_photo_that_was_late_already(self) -> None:
        budget = Budget(100.0, deadline=4.0)
        late, next_one, last = (request(arrived=at) for at in (90.0, 98.0, 99.0))
        assert budget.first_end([last, late, next_one]) == 102.0
        assert budget.first_end([late]) == 100.0
        assert budget.first_end([request(arrived=96.0)]) == 100.0  # ends now: it is late


class TestPasses:
    @pytest.mark.parametrize(
        ("sizes", "at_most", "per_option", "expected"),
        [
            ([2, 2, 2, 2], 4, 1, [2, 2]),
            ([3, 3, 3], 6, 1, [2, 1]),
            ([3, 3, 3], 5, 1, [1, 1, 1]),
            ([2, 2, 2, 2, 2, 2], 4, 1, [2, 2, 2]),
            ([2, 2, 2, 2], 4, 2, [1, 1, 1, 1]),
            ([8, 2, 2], 4, 1, [1, 2]),
            ([2, 8, 2], 4, 1, [1, 1, 1]),
            ([], 4, 1, []),
        ],
    )
    def test_are_filled_and_never_overfilled(
        self, sizes: list[int], at_most: int, per_option: int, expected: list[int]
    ) -> None:
        requests = [request(n) for n in sizes]
        made = list(passes(requests, at_most, per_option))
        assert [len(each) for each in made] == expected
        assert [one for each in made for one in each] == requests


class TestAskedInTime:
    @pytest.fixture
    def clock(self, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
        clock = SimpleNamespace(now=100.0)
        clock.monotonic = lambda: clock.now
        monkeypatch.setattr("lmm_classifier.rerank.budget.time", clock)
        return clock

    def test_no_pass_begins_that_would_end_too_late(self, clock: SimpleNamespace) -> None:
        """Passes of 2 s, 5 s in all: the third would end at 106, going by the second."""
        dues: list[float | None] = []

        def ask(some: Sequence[RerankRequest], due: float | None) -> list[Choice]:
            dues.append(due if some else None)
            clock.now += 2.0 * bool(some)
            return [choice(one) for one in some]

        requests = [request() for _ in range(4)]
        budget = Budget(100.0, max_seconds=5.0)
        results = list(asked_in_time(iter([[one] for one in requests]), budget, ask))
        assert [isinstance(result, Choice) for result in results] == [True, True, False, False]
        assert results[2] == "max_seconds: the 5 s for this batch have passed"
        assert dues == [105.0, 105.0, None, None]

    def test_a_pass_that_ends_on_time_is_begun(self, clock: SimpleNamespace) -> None:
        """Passes of 2 s, 6 s in all: the third ends with the last moment."""

        def ask(some: Sequence[RerankRequest], due: float | None) -> list[Choice]:
            clock.now += 2.0 * bool(some)
            return [choice(one) for one in some]

        results = asked_in_time(iter([[request()] for _ in range(4)]), Budget(100.0, max_seconds=6.0), ask)
        assert [isinstance(result, Choice) for result in results] == [True, True, True, False]

    def test_photos_of_a_pass_end_each_at_its_time(self, clock: SimpleNamespace) -> None:
        late, other, patient = (request(arrived=at) for at in (90.0, 97.0, 99.0))
        asked: list[tuple[int, float | None]] = []

        def ask(some: Sequence[RerankRequest], due: float | None) -> list[Choice]:
            asked.append((len(some), due))
            return [choice(one) for one in some]

        results = list(asked_in_time(iter([[late, other, patient]]), Budget(100.0, deadline=5.0), ask))
        assert asked == [(2, 102.0)]
        assert results[0] == "deadline: 5 s have passed since the photo came in"
        assert isinstance(results[1], Choice)
        assert isinstance(results[2], Choice)

    def test_running_out_of_time_is_no_failure_of_the_model(self, clock: SimpleNamespace) -> None:
        broken = ModelError("the weights melted")

        def ask(some: Sequence[RerankRequest], due: float | None) -> list[ModelError]:
            return [OutOfTimeError("the time for the answer is up"), broken]

        results = list(asked_in_time(iter([[request(), request()]]), Budget(100.0, max_seconds=9.0), ask))
        assert results == ["max_seconds: the 9 s for this batch have passed", broken]
