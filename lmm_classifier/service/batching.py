"""Where steps run for the service: photos that arrive together go through a step together, and once."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections import defaultdict, deque
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from contextvars import copy_context
from dataclasses import dataclass, field, replace
from typing import Any, Generic, TypeVar
from weakref import WeakValueDictionary

from lmm_classifier.corpus.images import ImageLimits, open_image, size_of_image
from lmm_classifier.logging_config import request_id
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.pipeline import Pipeline, Step, run_step
from lmm_classifier.types import Sample, read_only

_T = TypeVar("_T")
Line = tuple[Step, ...]
_OPENERS = 8  # threads that open models, each of which may take minutes
_OnBatch = Callable[[str, int, float], None]


class BatchScheduler:
    """Runs lines of steps over photos of one event loop, in threads.

    Steps are values: what waits before equal steps of different requests goes through as one batch, and a
    photo that several requests bring at a time goes through equal lines once. No two steps with the same
    model run at once.

    Args:
        threads: steps that run at once, and photos that are decoded at once.
        most: photos of a batch.
        wait_s: how long the first photo before an idle step with a model waits for company; before others
            it is a quarter of that.
        limits: of a photo.
        on_batch: is told the name of a step, the photos that went through it, and the seconds they took.
    """

    def __init__(
        self, threads: int, most: int, wait_s: float, limits: ImageLimits, on_batch: _OnBatch
    ) -> None:
        self._steps = ThreadPoolExecutor(threads, thread_name_prefix="step")
        self._decoders = ThreadPoolExecutor(threads, thread_name_prefix="decode")
        self._aside = ThreadPoolExecutor(threads, thread_name_prefix="aside")
        self._openers = ThreadPoolExecutor(_OPENERS, thread_name_prefix="open")
        self._most, self._wait_s, self._limits = most, wait_s, limits
        self._on_batch = on_batch
        self._queues: dict[Step, _Queue] = {}
        self._opening: defaultdict[frozenset[ModelSpec], asyncio.Lock] = defaultdict(asyncio.Lock)
        self._models: defaultdict[ModelSpec, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._photos: WeakValueDictionary[str, QueuedPhoto] = WeakValueDictionary()

    async def photo(self, content: bytes) -> tuple[QueuedPhoto, int]:
        """The photo of these bytes, the same for all who hold it at a time, and its pixels.

        Raises:
            ImageError: it is none, or outside the limits.
        """
        digest, pixels = await self._in(self._decoders, _measured, content, self._limits)
        photo = self._photos.get(digest)
        if photo is None:
            photo = self._photos[digest] = QueuedPhoto(content, self)
        return photo, pixels

    async def opened(self, content: bytes, target_size: int | None) -> Sample:
        """A decoded photo.

        Raises:
            ImageError: it cannot be read.
        """
        return await self._in(self._decoders, _opened, content, target_size, self._limits)

    async def aside(self, call: Callable[..., _T], *arguments: Any) -> _T:
        """What a call returns that would hold up the loop; not asyncio's own threads: these end in time."""
        return await self._in(self._aside, call, *arguments)

    async def resolution(self, line: Line) -> int | None:
        """As `Pipeline.resolution`: what the answer of a line rests on, whatever else a request asks for.

        Raises:
            LmmClassifierError: a model that must be asked cannot be opened.
        """
        models = frozenset(spec for step in line for spec in step.models())
        async with self._opening[models]:  # one thread waits for a model that is being opened, not all
            return await self._in(self._openers, Pipeline(line).resolution)

    async def run(self, step: Step, sample: Sample) -> Sample:
        """The sample after the step.

        Raises:
            LmmClassifierError: as the step raises it for this sample.
        """
        queue = self._queues.get(step)
        if queue is None:
            queue = self._queues[step] = _Queue()
            queue.worker = asyncio.ensure_future(self._work(step, queue))
        finished: asyncio.Future[Sample] = asyncio.get_running_loop().create_future()
        queue.waiting.append(_Waiting(sample, finished, request_id.get()))
        return await finished

    @property
    def waiting(self) -> int:
        """Photos that wait before a step."""
        return sum(len(queue.waiting) for queue in self._queues.values())

    def close(self) -> None:
        """Begin nothing more; what runs goes on in its thread."""
        for pool in (self._steps, self._decoders, self._aside, self._openers):
            pool.shutdown(wait=False, cancel_futures=True)

    async def _work(self, step: Step, queue: _Queue) -> None:
        try:
            # what comes out of a model together comes here together: it need not wait as long for company
            await asyncio.sleep(self._wait_s if step.models() else self._wait_s / 4)
            while queue.waiting:
                async with AsyncExitStack() as locks:
                    for spec in sorted(set(step.models()), key=repr):  # in one order, or two steps may wait
                        await locks.enter_async_context(self._models[spec])  # for each other
                    batch = [queue.waiting.popleft() for _ in range(min(self._most, len(queue.waiting)))]
                    await self._together(step, batch)
                    del batch  # the photos in it: the next model may be waited for
        finally:
            del self._queues[step]  # clients choose options: an idle queue for each would pile up
            for entry in queue.waiting:
                entry.finished.cancel()

    async def _together(self, step: Step, batch: Sequence[_Waiting]) -> None:
        batch = [entry for entry in batch if not entry.finished.done()]  # the others' clients have gone
        if not batch:
            return
        request_id.set(",".join(sorted({entry.request for entry in batch if entry.request})) or None)
        samples, started = [entry.sample for entry in batch], time.perf_counter()
        try:
            finished = await self._in(self._steps, run_step, step, samples)
        except Exception as error:  # noqa: BLE001 -- whoever waits for the photo raises it
            if len(batch) > 1:  # one photo must not cost the others their answer
                for entry in batch:
                    await self._together(step, [entry])
            elif not batch[0].finished.done():
                batch[0].finished.set_exception(error)
        else:
            self._on_batch(step.name, len(batch), time.perf_counter() - started)
            for entry, sample in zip(batch, finished, strict=True):
                if not entry.finished.done():
                    entry.finished.set_result(sample)

    async def _in(self, pool: ThreadPoolExecutor, call: Callable[..., _T], *arguments: Any) -> _T:
        here = copy_context()  # what is logged there bears the number of the request
        return await asyncio.get_running_loop().run_in_executor(pool, here.run, call, *arguments)


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """A photo before a step, where its answer is awaited, and the request that brought it."""

    sample: Sample
    finished: asyncio.Future[Sample]
    request: str | None


@dataclass
class _Queue:
    """What waits before one step, and who sees to it."""

    waiting: deque[_Waiting] = field(default_factory=deque)
    worker: asyncio.Task[None] | None = None


class QueuedPhoto:
    """One photo, and what became of it after each line of steps."""

    def __init__(self, content: bytes, bench: BatchScheduler) -> None:
        self._content = content
        self._bench = bench
        self._opened: _Shared[int | None, Sample] = _Shared()
        self._after: _Shared[tuple[int | None, Line], Sample] = _Shared()

    async def opened(self, target_size: int | None) -> Sample:
        """The photo, decoded; see `open_image` for the size.

        Raises:
            ImageError: it cannot be read.
        """
        return await self._opened.get(target_size, lambda: self._bench.opened(self._content, target_size))

    async def after(self, line: Line, target_size: int | None) -> Sample:
        """The sample after a line of steps; what lines begin with runs once.

        Raises:
            LmmClassifierError: as the steps raise it.
        """
        if not line:
            return await self.opened(target_size)
        return await self._after.get((target_size, line), lambda: self._run(line, target_size))

    async def _run(self, line: Line, target_size: int | None) -> Sample:
        before = await self.after(line[:-1], target_size)
        return before if before.skipped else await self._bench.run(line[-1], before)


_K = TypeVar("_K")


class _Shared(Generic[_K, _T]):
    """Work that several wait for is done once, and stops when the last of them goes away."""

    def __init__(self) -> None:
        self._tasks: dict[_K, asyncio.Task[_T]] = {}
        self._waiting: defaultdict[_K, int] = defaultdict(int)

    async def get(self, key: _K, begin: Callable[[], Coroutine[Any, Any, _T]]) -> _T:
        task = self._tasks.get(key)
        if task is None:
            task = self._tasks[key] = asyncio.ensure_future(begin())
        self._waiting[key] += 1
        try:
            return await asyncio.shield(task)
        finally:
            self._waiting[key] -= 1
            failed = task.done() and (task.cancelled() or task.exception())
            if failed or not self._waiting[key]:
                if self._tasks.get(key) is task and (failed or not task.done()):
                    del self._tasks[key]  # whoever comes now begins anew
                task.cancel()


def _opened(content: bytes, target_size: int | None, limits: ImageLimits) -> Sample:
    started = time.perf_counter()
    image = open_image(content, target_size=target_size, limits=limits)
    seconds = {"decode": time.perf_counter() - started}
    return replace(Sample.from_image("image", image), timings=read_only(seconds))


def _measured(content: bytes, limits: ImageLimits) -> tuple[str, int]:
    width, height = size_of_image(content, limits)
    return hashlib.sha256(content).hexdigest(), width * height
