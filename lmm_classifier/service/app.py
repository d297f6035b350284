"""`create_app`: the classifier and every step of it over HTTP."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, File, Form, Request, UploadFile
from fastapi.responses import Response
from pydantic import ValidationError

from lmm_classifier.api.hybrid_classifier import HybridClassifier
from lmm_classifier.service.admission import Admission
from lmm_classifier.service.collections import describe, listed
from lmm_classifier.service.errors import HttpError, explain_refusals, first_problem
from lmm_classifier.service.metrics import ServiceMetrics
from lmm_classifier.service.middleware import GuardMiddleware
from lmm_classifier.service.readiness import Readiness
from lmm_classifier.service.schemas import (
    Analysis,
    CollectionEntry,
    Failure,
    OperationEntry,
    Tasks,
    UrlRequest,
)
from lmm_classifier.service.static_pages import PAGE, page
from lmm_classifier.service.streaming import ManyAnswers
from lmm_classifier.text import one_line

_FILES = ("index.html", "page.css", "page.js", "photo.js", "results.js", "elements.js")
_FAILURES: dict[int | str, dict[str, Any]] = {
    status: {"model": Failure} for status in (400, 401, 403, 408, 413, 422, 429, 503)
}


def create_app(classifier: HybridClassifier) -> FastAPI:
    """The service, as `service:` of the classifier's settings has it. Opens no model before it starts.

    Raises:
        ConfigError: these settings are wrong.
    """
    settings, metrics = classifier.config.service, ServiceMetrics()
    admission = Admission(classifier, metrics)
    readiness = Readiness(classifier, admission.analyst.offered)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        readiness.begin()
        try:
            yield
        finally:
            admission.close()

    app = FastAPI(
        title="lmm-classifier",
        version=version("lmm-classifier"),
        responses=_FAILURES,
        lifespan=lifespan,
        redirect_slashes=False,  # a redirect would repeat the Host that a stranger sent
    )
    app.add_middleware(GuardMiddleware, settings=settings, metrics=metrics, check_room=admission.check_room)
    explain_refusals(app)
    app.include_router(_analysis(admission))
    app.include_router(_about(admission, readiness, metrics))
    app.include_router(page(PAGE / name for name in _FILES))
    return app


def _analysis(admission: Admission) -> APIRouter:
    routes = APIRouter(tags=["photos"])

    @routes.post("/analyze_image/", response_model=Analysis)
    async def analyze_image(request: Request, asked: UrlRequest) -> Response:
        """Do tasks with the photo that a URL leads to."""
        admission.check_tasks(asked)
        get = partial(admission.fetched, asked.image_url)
        return _answer(request, await admission.look(asked.image_url, get, asked))

    @routes.post("/analyze_image_upload/", response_model=Analysis)
    async def analyze_image_upload(
        request: Request, image_file: Annotated[UploadFile, File()], tasks_json: Annotated[str, Form()]
    ) -> Response:
        """Do tasks with an uploaded photo; `tasks_json` is {"tasks": [...]} or the list alone."""
        asked = _tasks(tasks_json)
        admission.check_tasks(asked)
        return _answer(request, await admission.look(_uploaded(image_file), image_file.read, asked))

    @routes.post("/analyze_images/", response_class=Response)
    async def analyze_images(
        tasks_json: Annotated[str, Form()],
        image_files: Annotated[list[UploadFile] | None, File()] = None,
        image_urls: Annotated[list[str] | None, Form()] = None,
    ) -> Response:
        """Do tasks with many photos: uploads first, then URLs, a JSON line for each, in their order."""
        asked = _tasks(tasks_json)
        uploads, urls = image_files or [], image_urls or []
        admission.check_tasks(asked, len(uploads) + len(urls))
        return ManyAnswers(admission, [(_uploaded(file), file) for file in uploads], urls, asked)

    return routes


def _about(admission: Admission, readiness: Readiness, metrics: ServiceMetrics) -> APIRouter:
    routes = APIRouter(tags=["about"])
    store = admission.analyst.store

    @routes.get("/available_operations/")
    async def available_operations() -> dict[str, OperationEntry]:
        """What can be done with a photo, and what each operation takes."""
        return {name: readiness.entry(operation) for name, operation in admission.analyst.offered.items()}

    @routes.get("/collections/")
    async def collections() -> list[CollectionEntry]:
        """The collections that `classify` knows."""
        return await admission.bench.aside(listed, store)

    @routes.get("/collections/{collection_id}", responses={404: {"model": Failure}})
    async def collection(collection_id: str) -> CollectionEntry:
        """One collection: what its classifier looks at, and how good it was when it was made."""
        return await admission.bench.aside(describe, store, collection_id)

    @routes.get("/health")
    async def health() -> dict[str, str | None]:
        """Whether the process answers, and on what models run, once one has; needs no key."""
        return {"status": "ok", "device": await admission.bench.aside(readiness.device)}

    @routes.get("/ready")
    async def ready() -> dict[str, str]:
        """Whether the models that are opened at the start are open; needs no key."""
        readiness.check()
        return {"status": "ready"}

    @routes.get("/metrics", response_class=Response)
    async def prometheus() -> Response:
        """Counts and times, for Prometheus."""
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return routes


def _answer(request: Request, finished: Any) -> Response:
    request.scope["state"] |= {"timings": finished.timings, "tasks": finished.done}
    return Response(finished.analysis, media_type="application/json")


def _tasks(text: str) -> Tasks:
    try:
        body = json.loads(text)
        return Tasks.model_validate({"tasks": body} if isinstance(body, list) else body)
    except (ValueError, RecursionError) as error:
        problem = first_problem(error.errors()) if isinstance(error, ValidationError) else "it is no JSON"
        raise HttpError(400, "malformed_tasks", f"tasks_json: {problem}") from error


def _uploaded(file: UploadFile) -> str:
    name = one_line((file.filename or "").replace("\\", "/").rpartition("/")[2])
    return f"uploaded:{name[:200]}"
