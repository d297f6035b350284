"""Many photos in one request: a JSON line for each, as soon as those before it are answered."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import deque
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from functools import partial

from fastapi import UploadFile
from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from lmm_classifier.service.admission import Admission
from lmm_classifier.service.errors import HttpError
from lmm_classifier.service.schemas import Tasks

log = logging.getLogger(__name__)

_AHEAD = 8  # photos of a request that are worked on at once


class ManyAnswers(StreamingResponse):
    """The answer to a request for many photos; one that fails has a line with `detail` and `code`.

    Sending it raises a Refusal where there are too many such requests.
    """

    def __init__(
        self,
        admission: Admission,
        uploads: Sequence[tuple[str, UploadFile]],
        urls: Sequence[str],
        asked: Tasks,
    ) -> None:
        self._admission = admission
        self._lines = _lines(admission, [*uploads, *((url, url) for url in urls)], asked)
        super().__init__(self._lines, media_type="application/x-ndjson")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it; whoever goes away before the first line takes no place with him."""
        async with self._admission.stream(), aclosing(self._lines):
            await super().__call__(scope, receive, send)


async def _lines(
    admission: Admission, sources: Sequence[tuple[str, UploadFile | str]], asked: Tasks
) -> AsyncGenerator[str, None]:
    running: deque[asyncio.Task[str]] = deque()
    try:
        for name, source in sources:
            if len(running) == _AHEAD:
                yield await running.popleft()
            running.append(asyncio.ensure_future(_line(admission, name, source, asked)))
        while running:
            yield await running.popleft()
    finally:
        for task in running:
            task.cancel()


async def _line(admission: Admission, name: str, source: UploadFile | str, asked: Tasks) -> str:
    try:
        if isinstance(source, str):
            admission.check_url(source)
        get = partial(admission.fetched, source) if isinstance(source, str) else source.read
        return (await admission.look_patiently(name, get, asked)).analysis + "\n"
    except HttpError as refusal:
        body = refusal.body
    except Exception:  # a photo's edge: one that breaks must not cost the others their lines
        log.exception("one of many photos")
        body = {"detail": "something broke; the log tells more", "code": "internal"}
    return json.dumps({"image_url": name, **body}) + "\n"
