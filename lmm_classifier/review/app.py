"""`create_review`: the review of a labelling run over HTTP, for this machine only."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Annotated

from anyio import CapacityLimiter, to_thread
from fastapi import APIRouter, Depends, FastAPI, Query, Request
from fastapi.responses import JSONResponse, Response

from lmm_classifier.config.service import ServiceSettings
from lmm_classifier.errors import LmmClassifierError
from lmm_classifier.index.manifest import read_manifest
from lmm_classifier.labelling.review_items import Order, by_certainty
from lmm_classifier.labelling.run_schema import as_text
from lmm_classifier.labelling.run_store import LabellingRun
from lmm_classifier.review.schemas import (
    AnnotationRequest,
    AnnotationResponse,
    Member,
    Overview,
    PhotoEvidence,
    QueueEntry,
    ReviewInfo,
    State,
    UndoRequest,
    UndoResponse,
)
from lmm_classifier.review.session import ReviewSession
from lmm_classifier.review.thumbnails import Size, below, picture
from lmm_classifier.service.errors import HttpError, explain_refusals
from lmm_classifier.service.metrics import ServiceMetrics
from lmm_classifier.service.middleware import GuardMiddleware
from lmm_classifier.service.static_pages import PAGE as SHARED
from lmm_classifier.service.static_pages import page
from lmm_classifier.types import required

log = logging.getLogger(__name__)

_PAGE = Path(__file__).with_name("page")
_FILES = (
    *(_PAGE / name for name in ("index.html", "review.css", "review.js", "show.js", "label.js", "server.js")),
    *(SHARED / name for name in ("page.css", "elements.js")),
)
SETTINGS = ServiceSettings(connections=64)
_PICTURES_AT_ONCE = 4  # threads that decode: as many large photos lie in memory
_OWN = frozenset({None, "same-origin", "none"})  # who may write; programs that are no browsers say nothing


def create_review(
    run: LabellingRun, reviewer: str, *, order: Order | None = None, corpus: Path | None = None
) -> FastAPI:
    """The review of a run. Listen at this machine's own address only: there are no keys.

    Args:
        run: as far as it has come.
        reviewer: who answers.
        order: makes the queue, and makes it again as answers come; None asks what is least certain first.
        corpus: folder that the paths of the neighbours start from; None shows them without pictures.

    Raises:
        RunError: the run or a log of its decisions is damaged.
        ConfigError: this cannot be a reviewer's name.
        IndexFolderError: the index of the run cannot be read; it says which labels there are.
    """
    labels = [as_text(label) for label in read_manifest(Path(run.manifest.index)).labels]
    session = ReviewSession(run, order or partial(by_certainty, run), reviewer, labels)
    about = ReviewInfo(
        session.review,
        as_text(run.folder.absolute().name),
        as_text(str(run.folder)),
        as_text(run.manifest.source),
        run.manifest.counts is not None,
        tuple(sorted(labels)),
        corpus is not None,
    )
    app = FastAPI(title="lmm-classifier review", docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_middleware(GuardMiddleware, settings=SETTINGS, metrics=ServiceMetrics(), check_room=lambda: None)
    explain_refusals(app)
    app.add_exception_handler(LmmClassifierError, _unusable)
    app.include_router(_queue(session, about))
    app.include_router(_pictures(session, corpus))
    app.include_router(_decisions(session))
    app.include_router(page(_FILES))
    return app


def _queue(session: ReviewSession, about: ReviewInfo) -> APIRouter:
    routes = APIRouter(tags=["queue"])

    @routes.get("/run")
    def run() -> ReviewInfo:
        """What is reviewed, and the labels there are."""
        return about

    @routes.get("/overview")
    def overview() -> Overview:
        """How far the review has come, whoever answered."""
        return session.overview()

    @routes.get("/queue")
    def queue(
        show: State = "open",
        after: Annotated[str | None, Query(max_length=300)] = None,
        limit: Annotated[int, Query(ge=1, le=200)] = 20,
    ) -> tuple[QueueEntry, ...]:
        """What stands in this way, first in the queue first; `conflict` lists photos alone."""
        return session.queue(show, after, limit)

    @routes.get("/members")
    def members(item: Annotated[str, Query(max_length=300)]) -> tuple[Member, ...]:
        """All photos of an item."""
        return session.members(item)

    @routes.get("/photos/{row}")
    def photo(row: int) -> PhotoEvidence:
        """What the classifier and the reviewers said of a photo."""
        return session.evidence(row)

    return routes


def _pictures(session: ReviewSession, corpus: Path | None) -> APIRouter:
    routes = APIRouter(tags=["pictures"])
    limiter = CapacityLimiter(_PICTURES_AT_ONCE)

    async def sent(path: Path, size: Size, sha256: str | None = None) -> Response:
        content = await to_thread.run_sync(partial(picture, path, size, sha256), limiter=limiter)
        return Response(content, media_type="image/webp")

    @routes.get("/photos/{row}/picture", response_class=Response)
    async def photo(row: int, size: Size = "large") -> Response:
        """A photo of the run, as it was when it was labelled, or not at all."""
        _, sha256 = session.photo(row)
        found = await to_thread.run_sync(session.run.row, row)
        return await sent(session.run.root / found.path, size, sha256)

    @routes.get("/photos/{row}/neighbours/{number}/picture", response_class=Response)
    async def neighbour(row: int, number: int, size: Size = "small") -> Response:
        """A photo of the corpus that is near one of the run; `number` counts from 0."""
        session.photo(row)
        found = await to_thread.run_sync(session.run.row, row)
        near = required(found.answer).neighbours
        path = near[number].path if 0 <= number < len(near) else ""
        # what an earlier review brought into the index lies where the run's photos do
        folder = session.run.root if Path(path).is_absolute() else corpus
        if folder is None or not path:
            raise HttpError(404, "gone", "there is no such picture")
        return await sent(below(folder, path), size)

    return routes


def _decisions(session: ReviewSession) -> APIRouter:
    routes = APIRouter(tags=["decisions"], dependencies=[Depends(_own_page)])

    @routes.post("/decisions")
    def decide(answer: AnnotationRequest) -> AnnotationResponse:
        """Say what photos are; answered when it is on the disk."""
        return session.decide(answer)

    @routes.post("/undo")
    def undo(press: UndoRequest) -> UndoResponse:
        """Take one's own last decision back; answered when that is on the disk."""
        return session.undo(press)

    return routes


def _own_page(request: Request) -> None:
    """A page of another server of this machine, which the guards take for ours, must not decide."""
    if request.headers.get("sec-fetch-site") not in _OWN:
        raise HttpError(403, "foreign", "only the page of this review may decide")


async def _unusable(_: Request, error: Exception) -> JSONResponse:
    """The disk refuses, or a file was damaged meanwhile. Which one the terminal tells: it has paths."""
    log.error("%s", error)
    return HttpError(503, "unusable", "the run cannot be read or written; the terminal says why").response()
