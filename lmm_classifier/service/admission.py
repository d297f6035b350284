"""Photos in, answers out: uploads and URLs, one or many, and only so many at once."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial

from pydantic import ValidationError

from lmm_classifier.api.hybrid_classifier import HybridClassifier
from lmm_classifier.errors import FetchError, ImageError
from lmm_classifier.fetch import fetch
from lmm_classifier.service.analysis import Analyst, Finished
from lmm_classifier.service.batching import BatchScheduler
from lmm_classifier.service.errors import HttpError, first_problem
from lmm_classifier.service.metrics import ServiceMetrics
from lmm_classifier.service.operation_catalog import operations
from lmm_classifier.service.schemas import Tasks, UrlRequest

_TOO_LARGE = frozenset({"too_many_bytes", "too_many_pixels"})
_BYTES_PER_PIXEL = 3
_MOST_MASK_BYTES = 2**30  # of a request: a mask has a byte per pixel
_STREAMS = 4  # requests for many photos at once: each has work for minutes


class Admission:
    """Takes photos in and has their tasks done.

    Raises:
        ConfigError: the settings of the service are wrong.
    """

    def __init__(self, classifier: HybridClassifier, metrics: ServiceMetrics) -> None:
        self._settings = settings = classifier.config.service
        self._guard = settings.fetch.guard()
        self.bench = BatchScheduler(
            settings.threads, settings.batch_size, settings.wait_seconds, classifier.limits, metrics.batch
        )
        self.analyst = Analyst(self.bench, operations(classifier), settings.max_bytes)
        self._fetchers = ThreadPoolExecutor(settings.at_once, thread_name_prefix="fetch")
        self._places = asyncio.Semaphore(settings.at_once)
        # photos of requests for many leave half of the places to those who bring one
        self._for_many = asyncio.Semaphore(max(settings.at_once // 2, 1))
        self._streams = self._inside = self._pixels = 0
        self._turn, self._left = asyncio.Lock(), asyncio.Condition()
        metrics.watch(lambda: self._inside, lambda: self.bench.waiting)

    def check_room(self) -> None:
        """Whether another photo may come in.

        Raises:
            Refusal: there are too many already.
        """
        if self._places.locked():
            raise HttpError(503, "overloaded", "too many photos at once; try again", {"retry-after": "1"})

    async def look(self, name: str, get: Callable[[], Awaitable[bytes]], asked: Tasks) -> Finished:
        """What tasks find in an encoded photo, which is got when there is room for it.

        Raises:
            Refusal: it is none, too large, or there is no room for it; or as `get` raises it.
        """
        self.check_room()
        return await self._look(name, get, asked)

    async def look_patiently(self, name: str, get: Callable[[], Awaitable[bytes]], asked: Tasks) -> Finished:
        """As `look`, for one of many photos of a request: it waits for room.

        Raises:
            Refusal: also where that and the rest take too long.
        """
        try:
            async with self._for_many, asyncio.timeout(self._settings.request_seconds):
                return await self._look(name, get, asked)
        except TimeoutError as error:
            raise HttpError(503, "out_of_time", "there was no answer in time") from error

    @asynccontextmanager
    async def stream(self) -> AsyncIterator[None]:
        """A request for many photos, while it lasts.

        Raises:
            Refusal: there are too many of them.
        """
        if self._streams >= _STREAMS:
            raise HttpError(503, "overloaded", "too many requests for many photos", {"retry-after": "10"})
        self._streams += 1
        try:
            yield
        finally:
            self._streams -= 1

    def check_tasks(self, asked: Tasks, n_images: int = 1) -> None:
        """Whether a request asks for no more than it may.

        Raises:
            Refusal: it does.
        """
        if len(asked.tasks) > self._settings.max_tasks:
            raise HttpError(422, "too_many_tasks", f"a request may have {self._settings.max_tasks} tasks")
        if not 0 < n_images <= self._settings.max_images:
            raise HttpError(
                422, "number_of_images", f"a request takes 1 to {self._settings.max_images} images"
            )

    def check_url(self, url: str) -> None:
        """Whether this is a URL at all, as the schema of a request for one photo has it.

        Raises:
            Refusal: it is not.
        """
        try:
            UrlRequest.model_validate({"image_url": url, "tasks": []})
        except ValidationError as error:
            raise HttpError(422, "malformed", first_problem(error.errors())) from error

    async def fetched(self, url: str) -> bytes:
        """The photo that a URL leads to.

        Raises:
            Refusal: it cannot be had.
        """
        if not self._settings.fetch.enabled:
            raise HttpError(400, "fetch_disabled", "this service fetches no URLs; upload the image instead")
        get = partial(fetch, url, guard=self._guard)
        try:
            return await asyncio.get_running_loop().run_in_executor(self._fetchers, get)
        except FetchError as error:
            raise HttpError(413 if error.code == "too_large" else 400, error.code, error.message) from error

    def close(self) -> None:
        """Begin nothing more."""
        self.bench.close()
        self._fetchers.shutdown(wait=False, cancel_futures=True)

    async def _look(self, name: str, get: Callable[[], Awaitable[bytes]], asked: Tasks) -> Finished:
        async with self._places:
            self._inside += 1
            try:
                photo, pixels = await self.bench.photo(await get())
                plan = await self.analyst.plan(asked.tasks)
                if plan.n_masks * pixels > _MOST_MASK_BYTES:
                    raise HttpError(413, "too_many_masks", "so many masks of a photo so large")
                async with self._held(pixels + plan.n_masks * pixels // _BYTES_PER_PIXEL):
                    return await self.analyst.answer(name, photo, plan)
            except ImageError as error:
                status = 413 if error.code in _TOO_LARGE else 400
                raise HttpError(status, error.code, f"the image cannot be read: {error.reason}") from error
            finally:
                self._inside -= 1

    @asynccontextmanager
    async def _held(self, pixels: int) -> AsyncIterator[None]:
        """Decoded photos take the most memory of all: those that are larger together wait for each other.

        A mask has a byte per pixel of the photo, which has three.
        """
        most = self._settings.max_pixels_at_once
        async with self._turn, self._left:  # in turn, or a large one would wait until no small one comes
            await self._left.wait_for(lambda: self._pixels + pixels <= most or not self._pixels)
            self._pixels += pixels
        try:
            yield
        finally:
            self._pixels -= pixels
            async with self._left:
                self._left.notify_all()
