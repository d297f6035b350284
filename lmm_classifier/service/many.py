"""Many photos in one request: a JSON line for each, as soon as those before it are answered."""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from functools import partial

from fastapi import UploadFile
from fastapi.responses import StreamingResponse

from lmm_classifier.service.desk import Desk
from lmm_classifier.service.refusals import Refusal
from lmm_classifier.service.schemas import Tasks

AHEAD = 8  # photos of a request that are worked on at once, so that one request does not take all places
AGAIN_S = 0.2  # after which a photo asks again for a place


def many_answers(
    desk: Desk, uploads: Sequence[tuple[str, UploadFile]], urls: Sequence[str], asked: Tasks
) -> StreamingResponse:
    """The answer to a request for many photos; one that fails has a line with `detail` and `code`."""

    async def one(name: str, source: UploadFile | str) -> str:
        try:
            if isinstance(source, str):
                desk.check_url(source)
                return await _patiently(desk, name, partial(desk.fetched, source), asked)
            return await _patiently(desk, name, source.read, asked)
        except Refusal as refusal:
            return json.dumps({"image_url": name, **refusal.body}) + "\n"

    async def lines() -> AsyncIterator[str]:
        running: deque[asyncio.Task[str]] = deque()
        sources: list[tuple[str, UploadFile | str]] = [*uploads, *((url, url) for url in urls)]
        try:
            for name, source in sources:
                if len(running) == AHEAD:
                    yield await running.popleft()
                running.append(asyncio.ensure_future(one(name, source)))
            while running:
                yield await running.popleft()
        finally:
            for task in running:
                task.cancel()

    return StreamingResponse(lines(), media_type="application/x-ndjson")


async def _patiently(desk: Desk, name: str, get: Callable[[], Awaitable[bytes]], asked: Tasks) -> str:
    """The request has been let in: its photos wait for a place instead of being sent away."""
    while True:
        try:
            return (await desk.look(name, get, asked)).analysis + "\n"
        except Refusal as refusal:
            if refusal.code != "overloaded":
                raise
            await asyncio.sleep(AGAIN_S)
