"""A service that describes images, on this machine, as good or as bad as a test wants it."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image
from starlette.datastructures import UploadFile
from starlette.requests import Request

from lmm_classifier.captioning.server import LIMITS
from local_server import LocalHandler, LocalServer, running

QUICK = replace(LIMITS, silence_s=1.0, total_s=2.0, tries=3, wait_s=0.01)
Reply = Callable[["Handler", "Asked"], None]


@dataclass(frozen=True)
class Asked:
    """A request for a caption, as the form parser of real services reads it."""

    path: str
    headers: dict[str, str]
    fields: dict[str, str]
    name: str
    type: str
    content: bytes

    @property
    def tasks(self) -> Any:
        return json.loads(self.fields["tasks_json"])

    @property
    def size(self) -> tuple[int, int]:
        with Image.open(io.BytesIO(self.content)) as image:
            return image.size


class CaptionServer(LocalServer):
    """Replies to each photo, and remembers what it was asked."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(Handler)
        self.reply = reply
        self.asked: list[Asked] = []

    @property
    def names(self) -> list[str]:
        return sorted(asked.name for asked in self.asked)


class Handler(LocalHandler):
    server: CaptionServer

    def do_GET(self) -> None:
        self.say(404, b"")

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        asked = asyncio.run(read_form(self.path, dict(self.headers), body))
        self.server.asked.append(asked)
        self.server.reply(self, asked)


async def read_form(path: str, headers: dict[str, str], body: bytes) -> Asked:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    raw = [(key.lower().encode(), value.encode()) for key, value in headers.items()]
    async with Request({"type": "http", "method": "POST", "headers": raw}, receive).form() as form:
        fields = {key: value for key, value in form.items() if isinstance(value, str)}
        [(field, file)] = [(key, value) for key, value in form.items() if isinstance(value, UploadFile)]
        assert field == "image_file"
        return Asked(path, headers, fields, file.filename, file.content_type, await file.read())


def answer(data: Any = None, status: str = "success", **more: Any) -> dict[str, Any]:
    result = {"status": status, "data": data, "error_message": None, "error_code": None, **more}
    return {"image_url": "uploaded", "results": {"caption": result}}


def tells_the_size(handler: Handler, asked: Asked) -> None:
    """As the fake captioner does, so that both doors must lead to the same words."""
    width, height = asked.size
    words = f"{width} by {height} pixels".split()[: asked.tasks["tasks"][0]["params"]["max_length"]]
    handler.say(200, answer(f"a picture of {' '.join(words)}"))


def says(data: Any, **more: Any) -> Reply:
    return lambda handler, asked: handler.say(200, answer(data, **more))


def refuses(status: int, code: str = "some_code", detail: str = "some reason", **headers: str) -> Reply:
    return lambda handler, asked: handler.say(status, {"detail": detail, "code": code}, **headers)


@contextmanager
def captioning(reply: Reply = tells_the_size) -> Iterator[CaptionServer]:
    with running(CaptionServer(reply)) as server:
        yield server
