"""`create_app`: the classifier and every step of it over HTTP."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import FastAPI, File, Form, HTTPException, Request, UploadFile
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from PIL import Image
from pydantic import ValidationError
from starlette.exceptions import HTTPException as StarletteHTTPException

from lmm_classifier.classifier import HybridClassifier
from lmm_classifier.corpus.images import open_image
from lmm_classifier.errors import FetchError, ImageError
from lmm_classifier.fetch import Guard, fetch
from lmm_classifier.service.analysis import Analyst
from lmm_classifier.service.guards import Guards
from lmm_classifier.service.operations import operations
from lmm_classifier.service.schemas import Analysis, Failure, Tasks, UrlRequest
from lmm_classifier.service.workbench import Workbench
from lmm_classifier.serving import ServiceSettings
from lmm_classifier.types import Sample

KEPT_PHOTOS = 64


class Refusal(HTTPException):
    """A whole request that fails, in a way that is told."""

    def __init__(self, status: int, code: str, detail: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(status, detail, headers)
        self.code = code


class Desk:
    """Takes photos in: fetched, decoded in threads, and only so many at once."""

    def __init__(self, classifier: HybridClassifier, settings: ServiceSettings) -> None:
        self._classifier, self._settings = classifier, settings
        self.analyst = Analyst(operations(classifier, settings))
        self.bench = Workbench(settings.threads, settings.batch_size, settings.wait_seconds, KEPT_PHOTOS)
        self._decoders = ThreadPoolExecutor(settings.threads, thread_name_prefix="decode")
        self._fetchers = ThreadPoolExecutor(settings.at_once, thread_name_prefix="fetch")
        self._inside = 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Room for one photo.

        Raises:
            Refusal: there is none.
        """
        if self._inside >= self._settings.at_once:
            raise Refusal(503, "overloaded", "too many photos at once; try again", {"Retry-After": "1"})
        self._inside += 1
        try:
            yield
        finally:
            self._inside -= 1

    async def analysed(self, name: str, content: bytes, asked: Tasks) -> Analysis:
        """What the tasks find in an encoded photo.

        Raises:
            Refusal: it is none, or there are too many tasks.
        """
        if len(asked.tasks) > self._settings.max_tasks:
            raise Refusal(422, "too_many_tasks", f"a request may have {self._settings.max_tasks} tasks")
        loop = asyncio.get_running_loop()
        try:
            image = await loop.run_in_executor(self._decoders, self._decoded, content)
        except ImageError as error:
            status = 413 if error.code in {"too_many_bytes", "too_many_pixels"} else 400
            raise Refusal(status, error.code, f"the image cannot be read: {error.reason}") from error
        photo = self.bench.photo(hashlib.sha256(content).hexdigest(), Sample.from_image("image", image))
        return Analysis(image_url=name, results=await self.analyst.results(photo, asked.tasks))

    async def fetched(self, url: str, guard: Guard) -> bytes:
        """The photo that a URL leads to.

        Raises:
            Refusal: it cannot be had.
        """
        loop = asyncio.get_running_loop()
        try:
            return await loop.run_in_executor(self._fetchers, _fetched(url, guard))
        except FetchError as error:
            raise Refusal(413 if error.code == "too_large" else 400, error.code, error.message) from error

    def _decoded(self, content: bytes) -> Image.Image:
        return open_image(content, limits=self._classifier.limits)


def _fetched(url: str, guard: Guard) -> Callable[[], bytes]:
    return lambda: fetch(url, guard=guard)


def create_app(classifier: HybridClassifier, settings: ServiceSettings) -> FastAPI:
    """The service. Opens no model; raises ConfigError where the settings name an operation there is not."""
    desk = Desk(classifier, settings)
    failures: dict[int | str, dict[str, Any]] = {
        status: {"model": Failure} for status in (400, 401, 408, 413, 422, 503)
    }
    app = FastAPI(title="lmm-classifier", version=version("lmm-classifier"), responses=failures)
    app.add_middleware(Guards, settings=settings)

    @app.post("/analyze_image/")
    async def analyze_image(request: UrlRequest) -> Analysis:
        """Do tasks with the photo that a URL leads to."""
        if settings.fetch is None:
            raise Refusal(400, "fetch_disabled", "this service fetches no URLs; upload the image instead")
        async with desk.place():
            url = str(request.image_url)
            return await desk.analysed(url, await desk.fetched(url, settings.fetch.guard()), request)

    @app.post("/analyze_image_upload/")
    async def analyze_image_upload(
        image_file: Annotated[UploadFile, File()], tasks_json: Annotated[str, Form()]
    ) -> Analysis:
        """Do tasks with an uploaded photo; `tasks_json` is {"tasks": [...]} or the list alone."""
        asked = _tasks(tasks_json)
        async with desk.place():
            return await desk.analysed("uploaded", await image_file.read(), asked)

    @app.get("/available_operations/")
    async def available_operations() -> dict[str, Any]:
        """What can be done with a photo, and what each takes."""
        return {
            operation.name: {
                "description": operation.description,
                "allowed_targets": list(operation.targets),
                "default_target": operation.targets[0],
                "parameters": operation.parameters.model_json_schema(),
            }
            for operation in desk.analyst.offered.values()
        }

    @app.get("/health")
    async def health() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    app.add_exception_handler(StarletteHTTPException, _refused)
    app.add_exception_handler(RequestValidationError, _malformed)
    return app


def _tasks(text: str) -> Tasks:
    try:
        body = json.loads(text)
        return Tasks.model_validate({"tasks": body} if isinstance(body, list) else body)
    except (ValueError, RecursionError) as error:
        problem = error.errors()[0]["msg"] if isinstance(error, ValidationError) else "it is no JSON"
        raise Refusal(400, "malformed_tasks", f"tasks_json cannot be read: {problem}") from error


async def _refused(request: Request, error: Exception) -> JSONResponse:
    if not isinstance(error, StarletteHTTPException):
        raise error
    code = error.code if isinstance(error, Refusal) else {404: "not_found", 405: "no_such_method"}.get(error.status_code, "refused")
    return JSONResponse({"detail": error.detail, "code": code}, error.status_code, error.headers)


async def _malformed(request: Request, error: Exception) -> JSONResponse:
    """Where the request is wrong, without repeating it."""
    if not isinstance(error, RequestValidationError):
        raise error
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return JSONResponse({"detail": f"{where}: {first['msg']}", "code": "malformed"}, 422)
