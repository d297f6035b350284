"""Steps shared by requests: batches, identical photos, one model at a time, and leaving early."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from typing import Any, ClassVar

import pytest
from pydantic.dataclasses import dataclass

from lmm_classifier.corpus.images import DEFAULT_LIMITS
from lmm_classifier.errors import ModelError
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.pipeline import Step
from lmm_classifier.service.batching import BatchScheduler
from lmm_classifier.types import Sample
from served import encoded
from synthetic import picture

BATCHES: list[tuple[str, int]] = []
RUNNING: dict[str, int] = {}
MOST: dict[str, int] = {}
HELD = threading.Event()  # until it is set, a step that is told to wait for it does


@pytest.fixture(autouse=True)
def fresh() -> None:
    for kept in (BATCHES, RUNNING, MOST, HELD):
        kept.clear()


@dataclass(frozen=True, config={"extra": "forbid"})
class Slow(Step):
    """Writes down who came with whom, and captions a photo with its width."""

    name: ClassVar[str] = "slow"
    requires: ClassVar[frozenset[str]] = frozenset({"image"})
    provides: ClassVar[frozenset[str]] = frozenset({"captions"})

    title: str = "a"
    model: ModelSpec = ModelSpec("fake")
    seconds: float = 0.02
    refuses: int = 0
    breaks: int = 0
    held: bool = False

    def run(self, batch: Sequence[Sample]) -> list[Sample]:
        key = self.model.weights
        RUNNING[key] = RUNNING.get(key, 0) + 1
        MOST[key] = max(MOST.get(key, 0), RUNNING[key])
        BATCHES.append((self.title, len(batch)))
        time.sleep(self.seconds)
        let_go = not self.held or HELD.wait(20)
        RUNNING[key] -= 1
        assert let_go
        if any(sample.image.width == self.refuses for sample in batch):
            raise ModelError("this one not")
        if any(sample.image.width == self.breaks for sample in batch):
            raise MemoryError
        return [replace(sample, captions=(f"{sample.image.width}",)) for sample in batch]


def photo(width: int) -> bytes:
    return encoded(picture((9, 9, 9), seed=width).resize((width, 4)))


def on_a_bench(work: Callable[[BatchScheduler], Awaitable[Any]], **options: Any) -> Any:
    async def run() -> Any:
        settings = {"threads": 2, "most": 16, "wait_s": 0.1} | options
        bench = BatchScheduler(**settings, limits=DEFAULT_LIMITS, on_batch=lambda *_: None)
        try:
            return await work(bench)
        finally:
            bench.close()

    return asyncio.run(run())


async def caption(bench: BatchScheduler, content: bytes, *line: Step) -> str:
    held, _ = await bench.photo(content)
    sample = await held.after(line, None)
    assert sample.captions
    return sample.captions[0]


def test_photos_that_come_together_go_together() -> None:
    async def work(bench: BatchScheduler) -> list[str]:
        return await asyncio.gather(*(caption(bench, photo(w), Slow()) for w in range(1, 21)))

    assert on_a_bench(work) == [str(w) for w in range(1, 21)]
    assert BATCHES == [("a", 16), ("a", 4)]


def test_one_photo_of_many_requests_goes_once() -> None:
    async def work(bench: BatchScheduler) -> set[str]:
        return set(await asyncio.gather(*(caption(bench, photo(7), Slow(), Slow("b")) for _ in range(9))))

    assert on_a_bench(work) == {"7"}
    assert BATCHES == [("a", 1), ("b", 1)]


def test_lines_share_what_they_begin_with() -> None:
    async def work(bench: BatchScheduler) -> None:
        both = (Slow(), Slow("b")), (Slow(), Slow("c"))
        held, pixels = await bench.photo(photo(7))
        assert pixels == 7 * 4
        await asyncio.gather(*(held.after(line, None) for line in both))

    on_a_bench(work)
    assert sorted(BATCHES) == [("a", 1), ("b", 1), ("c", 1)]


def test_a_model_does_one_thing_at_a_time() -> None:
    async def work(bench: BatchScheduler) -> None:
        steps = [Slow(f"{i}", ModelSpec("fake", weights), 0.1) for weights in "xy" for i in range(4)]
        await asyncio.gather(*(caption(bench, photo(3), step) for step in steps))

    on_a_bench(work, wait_s=0)
    assert MOST == {"x": 1, "y": 1}
    assert len(BATCHES) == 8


def test_two_models_work_at_the_same_time() -> None:
    async def work(bench: BatchScheduler) -> str:
        x, y = (Slow(weights, ModelSpec("fake", weights), held=weights == "x") for weights in "xy")
        first = asyncio.ensure_future(caption(bench, photo(3), x))
        while not BATCHES:
            await asyncio.sleep(0.01)
        second = await caption(bench, photo(4), y)  # while x waits
        HELD.set()
        return await first + second

    assert on_a_bench(work, wait_s=0) == "34"


def test_a_photo_that_fails_fails_alone() -> None:
    async def work(bench: BatchScheduler) -> list[Any]:
        asked = (caption(bench, photo(w), Slow(refuses=2)) for w in (1, 2, 3))
        return await asyncio.gather(*asked, return_exceptions=True)

    first, second, third = on_a_bench(work)
    assert (first, third) == ("1", "3")
    assert isinstance(second, ModelError)
    assert BATCHES == [("a", 3), ("a", 1), ("a", 1), ("a", 1)]


def test_a_failure_is_not_remembered() -> None:
    async def work(bench: BatchScheduler) -> int:
        held, _ = await bench.photo(photo(2))
        for _ in range(2):
            with pytest.raises(ModelError):
                await held.after((Slow(refuses=2),), None)
        return len(BATCHES)

    assert on_a_bench(work) == 2


def test_what_nobody_waits_for_any_more_is_not_begun() -> None:
    async def work(bench: BatchScheduler) -> None:
        first = asyncio.ensure_future(caption(bench, photo(1), Slow(seconds=0.3)))
        await asyncio.sleep(0.2)  # it is being worked on
        gone = [asyncio.ensure_future(caption(bench, photo(w), Slow(seconds=0.3))) for w in range(2, 9)]
        stays = asyncio.ensure_future(caption(bench, photo(9), Slow(seconds=0.3)))
        await asyncio.sleep(0.05)
        for task in gone:
            task.cancel()
        assert await first == "1"
        assert await stays == "9"

    on_a_bench(work)
    assert BATCHES == [("a", 1), ("a", 1)]


def test_who_asked_first_may_go_without_taking_the_answer_along() -> None:
    async def work(bench: BatchScheduler) -> str:
        first = asyncio.ensure_future(caption(bench, photo(1), Slow(seconds=0.2)))
        second = asyncio.ensure_future(caption(bench, photo(1), Slow(seconds=0.2)))
        await asyncio.sleep(0.15)
        first.cancel()
        return await second

    assert on_a_bench(work) == "1"
    assert BATCHES == [("a", 1)]


def test_nothing_is_kept_of_what_is_answered() -> None:
    async def work(bench: BatchScheduler) -> tuple[int, int]:
        for width in range(1, 30):
            await caption(bench, photo(width), Slow(f"{width}", seconds=0))
        await asyncio.sleep(0.05)
        return len(bench._photos), len(bench._queues)

    assert on_a_bench(work, wait_s=0) == (0, 0)


def test_the_loop_is_free_while_steps_run() -> None:
    async def work(bench: BatchScheduler) -> str:
        busy = asyncio.ensure_future(caption(bench, photo(1), Slow(held=True)))
        while not BATCHES:
            await asyncio.sleep(0.01)
        HELD.set()  # which only a loop that is free can do
        return await busy

    assert on_a_bench(work) == "1"


def test_closing_waits_for_nothing() -> None:
    async def work(bench: BatchScheduler) -> int:
        abandoned = asyncio.ensure_future(caption(bench, photo(1), Slow(held=True)))
        while not BATCHES:
            await asyncio.sleep(0.01)
        bench.close()
        abandoned.cancel()
        running = RUNNING[""]
        HELD.set()
        return running

    assert on_a_bench(work) == 1


def test_a_photo_that_breaks_a_library_breaks_alone() -> None:
    async def work(bench: BatchScheduler) -> list[Any]:
        asked = (caption(bench, photo(w), Slow(breaks=2)) for w in (1, 2, 3))
        return await asyncio.gather(*asked, return_exceptions=True)

    first, second, third = on_a_bench(work)
    assert (first, third) == ("1", "3")
    assert isinstance(second, MemoryError)


def test_photos_that_failed_together_are_not_tried_again_for_nobody() -> None:
    async def work(bench: BatchScheduler) -> None:
        step = Slow(refuses=2, seconds=0.2)
        asked = [asyncio.ensure_future(caption(bench, photo(w), step)) for w in range(1, 9)]
        await asyncio.sleep(0.25)
        for task in asked:
            task.cancel()
        await asyncio.sleep(0.4)

    on_a_bench(work)
    assert BATCHES == [("a", 8)]


def test_who_comes_while_the_last_one_goes_gets_an_answer() -> None:
    async def work(bench: BatchScheduler) -> str:
        content = photo(5)
        held, _ = await bench.photo(content)
        first = asyncio.ensure_future(held.after((Slow(seconds=0.2),), None))
        await asyncio.sleep(0.15)
        first.cancel()
        await asyncio.sleep(0)  # it is being told so now
        return await caption(bench, content, Slow(seconds=0.2))

    assert on_a_bench(work) == "5"


def test_a_model_that_is_slow_to_open_keeps_nobody_from_another() -> None:
    """Also when more ask for it than there are threads."""

    @dataclass(frozen=True, config={"extra": "forbid"})
    class Opening(Slow):
        def resolution(self) -> int | None:
            assert not self.held or HELD.wait(20)
            return None

    async def work(bench: BatchScheduler) -> bool:
        slow = [Opening(f"{i}", ModelSpec("fake", "slow"), held=True) for i in range(12)]
        waiting = [asyncio.ensure_future(bench.resolution((step,))) for step in slow]
        await asyncio.sleep(0.05)
        await bench.resolution((Opening("b", ModelSpec("fake", "quick")),))
        opened = any(task.done() for task in waiting)
        for task in waiting:
            task.cancel()
        HELD.set()
        return opened

    assert not on_a_bench(work)
