"""A request's body as it comes, counted and timed, and what goes back."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from contextlib import suppress

from starlette.types import Message, Receive, Send

from lmm_classifier.config.service import ServiceSettings
from lmm_classifier.service.errors import HttpError

# Bytes of a body that is no form: JSON takes many times as much memory, and time of the loop
_MAX_TEXT = 2**20
_DRAIN_S = 2.0
_UNREAD = frozenset({408, 413})  # refusals of the body itself: the rest is not waited for
_STUCK_S = 30.0  # in which a client must take 64 KiB, as much as the server keeps for it
_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'",
}


class LimitedBody:
    """The body of a request.

    Args:
        receive: of the server.
        headers: of the request.
        settings: how large and how slow it may be.
    """

    def __init__(self, receive: Receive, headers: Mapping[str, str], settings: ServiceSettings) -> None:
        self._receive = receive
        self._length = headers.get("content-length", "")
        is_form = headers.get("content-type", "").lower().startswith("multipart/")
        self._most = settings.max_bytes if is_form else min(settings.max_bytes, _MAX_TEXT)
        self._bytes = 0
        self._due = time.monotonic() + settings.body_seconds
        self._waits_to_be_asked = "expect" in headers
        self._read = asyncio.Event()
        self._gone = asyncio.Event()
        self._is_empty = self._length in {"", "0"} and "transfer-encoding" not in headers
        if self._is_empty:
            self._read.set()

    @property
    def done(self) -> bool:
        """Whether nothing more of it will come."""
        return self._read.is_set()

    def check_length(self) -> None:
        """Whether it says that it is larger than it may be.

        Raises:
            Refusal: it does.
        """
        if self._length.isdecimal() and len(self._length) < 20:
            self._check(int(self._length))

    async def receive(self) -> Message:
        """What comes next; as ASGI has it.

        Raises:
            Refusal: too much of it, or too late.
        """
        if self._is_empty:  # who asks the server may take what `abandoned` waits for, or the other way round
            self._is_empty = False
            return {"type": "http.request", "body": b"", "more_body": False}
        if self.done:
            await self._gone.wait()
            return {"type": "http.disconnect"}
        try:
            async with asyncio.timeout(max(self._due - time.monotonic(), 0)):
                message = await self._receive()
        except TimeoutError as error:
            raise HttpError(408, "too_slow", "the request did not come in time") from error
        if message["type"] == "http.request":
            self._bytes += len(message.get("body", b""))
            self._check(self._bytes)
        else:
            self._gone.set()
        if not message.get("more_body", False):
            self._read.set()
        return message

    async def abandoned(self) -> None:
        """Return when all of it has come, and then the client has gone."""
        await self._read.wait()
        while not self._gone.is_set():
            if (await self._receive())["type"] == "http.disconnect":
                self._gone.set()

    async def drain(self) -> None:
        """Read what is left: most clients listen only when they have sent all, and miss an earlier answer."""
        self._due = min(self._due, time.monotonic() + _DRAIN_S)
        with suppress(HttpError):
            while not (self.done or self._waits_to_be_asked):
                await self.receive()

    def _check(self, n_bytes: int) -> None:
        if n_bytes > self._most:
            raise HttpError(413, "too_large", f"a request may have {self._most} bytes")


class SentResponse:
    """What is sent back, with the headers that every answer has.

    Attributes:
        status: 0 until it has begun.
    """

    def __init__(self, send: Send, headers: Mapping[str, str], body: LimitedBody) -> None:
        self._send, self._own, self._body = send, {**_HEADERS, **headers}, body
        self.status = 0

    async def send(self, message: Message) -> None:
        """Send on; as ASGI has it.

        Raises:
            TimeoutError: the client does not take it.
        """
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.status not in _UNREAD:
                await self._body.drain()
            own = self._own if self._body.done else {**self._own, "connection": "close"}
            more = [(key.encode(), value.encode()) for key, value in own.items()]
            message = {**message, "headers": [*message["headers"], *more]}
        async with asyncio.timeout(_STUCK_S):
            await self._send(message)
