"""Where steps run for the service: photos that arrive together go through a step together, and once."""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from lmm_classifier.errors import LmmClassifierError
from lmm_classifier.pipeline import Step, run_step
from lmm_classifier.types import Sample

Line = tuple[Step, ...]


class Workbench:
    """Runs lines of steps over photos of one event loop, in threads.

    Steps are values: what waits before equal steps of different requests goes through as one batch, and a
    photo that several requests bring goes through equal lines once. A step runs in one thread at a time.

    Args:
        threads: steps that run at once.
        most: photos of a batch.
        wait_s: how long the first photo before an idle step waits for company.
        kept: photos whose samples are kept for the next request that brings them.
    """

    def __init__(self, threads: int, most: int, wait_s: float, kept: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="step")
        self._most, self._wait_s, self._kept = most, wait_s, kept
        self._benches: dict[Step, _Bench] = {}
        self._photos: OrderedDict[str, Photo] = OrderedDict()

    def photo(self, digest: str, sample: Sample) -> Photo:
        """The photo of this digest, as it was brought first."""
        if digest not in self._photos:
            self._photos[digest] = Photo(sample, self)
            while len(self._photos) > self._kept:
                self._photos.popitem(last=False)
        self._photos.move_to_end(digest)
        return self._photos[digest]

    async def run(self, step: Step, sample: Sample) -> Sample:
        """The sample after the step.

        Raises:
            LmmClassifierError: as the step raises it for this sample.
        """
        bench = self._benches.get(step)
        if bench is None:
            bench = self._benches[step] = _Bench(step, self._pool, self._most, self._wait_s)
        return await bench.run(sample)

    @property
    def waiting(self) -> Mapping[str, int]:
        """Name of a step -> samples that wait before it."""
        counts: dict[str, int] = {}
        for step, bench in self._benches.items():
            counts[step.name] = counts.get(step.name, 0) + len(bench.waiting)
        return counts

    def close(self) -> None:
        """Wait for the steps that run, and begin no more."""
        self._pool.shutdown(cancel_futures=True)


class Photo:
    """One photo, and what became of it after each line of steps."""

    def __init__(self, sample: Sample, bench: Workbench) -> None:
        self.sample = sample
        self._bench = bench
        self._after: dict[Line, asyncio.Task[Sample]] = {}

    async def after(self, line: Line) -> Sample:
        """The sample after a line of steps; what lines begin with runs once.

        Raises:
            LmmClassifierError: as the steps raise it.
        """
        if not line:
            return self.sample
        task = self._after.get(line)
        if task is None or (task.done() and (task.cancelled() or task.exception())):  # a failure may pass
            task = self._after[line] = asyncio.ensure_future(self._run(line))
        return await asyncio.shield(task)  # who asked first may go away; others wait for it, too

    async def _run(self, line: Line) -> Sample:
        before = await self.after(line[:-1])
        return before if before.skipped else await self._bench.run(line[-1], before)


@dataclass
class _Bench:
    """What waits before one step."""

    step: Step
    pool: ThreadPoolExecutor
    most: int
    wait_s: float
    waiting: deque[tuple[Sample, asyncio.Future[Sample]]] = field(default_factory=deque)
    worker: asyncio.Task[None] | None = None

    async def run(self, sample: Sample) -> Sample:
        finished: asyncio.Future[Sample] = asyncio.get_running_loop().create_future()
        self.waiting.append((sample, finished))
        if self.worker is None:
            self.worker = asyncio.ensure_future(self._work())
        return await finished

    async def _work(self) -> None:
        try:
            await asyncio.sleep(self.wait_s)
            while self.waiting:
                batch = [self.waiting.popleft() for _ in range(min(self.most, len(self.waiting)))]
                await self._together([entry for entry in batch if not entry[1].done()])
        finally:
            self.worker = None

    async def _together(self, batch: list[tuple[Sample, asyncio.Future[Sample]]]) -> None:
        if not batch:
            return
        loop = asyncio.get_running_loop()
        try:
            finished = await loop.run_in_executor(
                self.pool, run_step, self.step, [sample for sample, _ in batch]
            )
        except LmmClassifierError as error:
            if len(batch) > 1:  # one photo must not cost the others their answer
                for entry in batch:
                    await self._together([entry])
            else:
                _tell(batch[0][1], error)
        except BaseException as error:
            for _, future in batch:
                _tell(future, error)
            if not isinstance(error, Exception):
                raise
        else:
            for (_, future), sample in zip(batch, finished, strict=True):
                if not future.done():
                    future.set_result(sample)


def _tell(future: asyncio.Future[Sample], error: BaseException) -> None:
    if not future.done():
        future.set_exception(error)
