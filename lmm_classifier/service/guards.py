"""What every request passes before a route sees it: its number, its key, its size, its pace and its time."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
import logging
import time
import uuid
from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lmm_classifier.serving import ServiceSettings

log = logging.getLogger(__name__)

REQUEST_ID = "x-request-id"
OPEN = frozenset({"/health", "/ready"})  # asked by what starts and stops the service, which has no key
HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; style-src 'self' 'unsafe-inline'",
}


class _TooLarge(Exception):
    """More bytes than a request may have."""


class _TooSlow(Exception):
    """The body did not come in time."""


class Guards:
    """An ASGI middleware; refuses in the form that the routes do, {"detail", "code"}."""

    def __init__(self, app: ASGIApp, settings: ServiceSettings) -> None:
        self._app, self._settings = app, settings
        self._keys = tuple(bytes.fromhex(key.removeprefix("sha256:")) for key in settings.api_keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        answer = _Answer(send, request_id)
        started = time.monotonic()
        try:
            await asyncio.wait_for(self._guarded(scope, receive, answer), self._settings.request_seconds)
        except _TooLarge:
            await answer.refuse(413, "too_large", f"a request may have {self._settings.max_bytes} bytes")
        except _TooSlow:
            await answer.refuse(408, "too_slow", "the request did not come in time")
        except TimeoutError:
            await answer.refuse(503, "out_of_time", "there was no answer in time", {"retry-after": "5"})
        except Exception:
            log.exception("request %s", request_id)
            await answer.refuse(500, "internal", "something broke; the log tells more")
        log.info(
            "%s %s %s",
            scope["method"],
            scope["path"],
            answer.status,
            extra={"request_id": request_id, "seconds": round(time.monotonic() - started, 4)},
        )

    async def _guarded(self, scope: Scope, receive: Receive, answer: _Answer) -> None:
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        if scope["path"] not in OPEN and not self._lets_in(headers):
            await answer.refuse(401, "no_key", "a key is needed: Authorization: Bearer ...", {"www-authenticate": "Bearer"})
            return
        length = headers.get("content-length", "0")
        if length.isdigit() and int(length) > self._settings.max_bytes:
            raise _TooLarge
        body = _Body(receive, self._settings)
        await self._app(scope, body.receive, answer.send)

    def _lets_in(self, headers: Mapping[str, str]) -> bool:
        if not self._keys:
            return True
        scheme, _, key = headers.get("authorization", "").partition(" ")
        digest = hashlib.sha256(key.strip().encode()).digest()
        # every key is compared, and each in constant time: how long it takes tells nothing
        fits = [hmac.compare_digest(digest, each) for each in self._keys]
        return scheme.lower() == "bearer" and any(fits)


class _Body:
    """The body as it comes, counted and timed."""

    def __init__(self, receive: Receive, settings: ServiceSettings) -> None:
        self._receive, self._settings = receive, settings
        self._bytes = 0
        self._due = time.monotonic() + settings.body_seconds
        self._done = False

    async def receive(self) -> Message:
        if self._done:
            return await self._receive()
        try:
            message = await asyncio.wait_for(self._receive(), max(self._due - time.monotonic(), 0.001))
        except TimeoutError as error:
            raise _TooSlow from error
        if message["type"] == "http.request":
            self._bytes += len(message.get("body", b""))
            if self._bytes > self._settings.max_bytes:
                raise _TooLarge
            self._done = not message.get("more_body", False)
        return message


class _Answer:
    """What is sent back, with the headers that every answer has."""

    def __init__(self, send: Send, request_id: str) -> None:
        self._send, self._id = send, request_id
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            own = {**HEADERS, REQUEST_ID: self._id}
            given = {key for key, _ in message["headers"]}
            more = [(k.encode(), v.encode()) for k, v in own.items() if k.encode() not in given]
            message = {**message, "headers": [*message["headers"], *more]}
        await self._send(message)

    async def refuse(
        self, status: int, code: str, detail: str, headers: Mapping[str, str] | None = None
    ) -> None:
        """Answer for the route, unless it has begun to."""
        if self.status:
            return
        body = json.dumps({"detail": detail, "code": code}).encode()
        told = {"content-type": "application/json", "content-length": str(len(body)), **(headers or {})}
        if status in {408, 413}:
            told["connection"] = "close"  # the rest of the body is not read
        start = {
            "type": "http.response.start",
            "status": status,
            "headers": [(key.encode(), value.encode()) for key, value in told.items()],
        }
        await self.send(start)
        await self._send({"type": "http.response.body", "body": body})
