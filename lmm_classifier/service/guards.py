"""What every request passes before a route sees it: number, key, rate, size, pace and time."""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import json
import logging
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lmm_classifier.logging_config import request_id
from lmm_classifier.service.metrics import Metrics
from lmm_classifier.service.rates import Rates
from lmm_classifier.service.refusals import Refusal
from lmm_classifier.service_settings import ServiceSettings

log = logging.getLogger(__name__)

REQUEST_ID = "x-request-id"
OPEN = frozenset({"/health", "/ready"})  # asked by what starts and stops the service, which has no key
OURS = frozenset({"localhost", "127.0.0.1", "[::1]"})
HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'self'; img-src 'self' data: blob:; frame-ancestors 'none'",
}
DOCS = {  # FastAPI's page takes its script and its picture from elsewhere
    "content-security-policy": "default-src 'self'; script-src 'unsafe-inline' https://cdn.jsdelivr.net; "
    "style-src https://cdn.jsdelivr.net; img-src 'self' data: https://fastapi.tiangolo.com"
}
UNREAD = frozenset({408, 413})  # refusals of the body itself: the rest is not waited for
# Without ", Bearer", which a client may use all the same: Chromium reads a line as one challenge, and would
# show its user nothing.
KNOCK = {"www-authenticate": 'Basic realm="lmm-classifier, any name, the key as password"'}


class Guards:
    """An ASGI middleware; refuses in the form that the routes do.

    Args:
        app: what is guarded.
        settings: what a client may.
        metrics: counts each answer.
    """

    def __init__(self, app: ASGIApp, settings: ServiceSettings, metrics: Metrics) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._keys = tuple(bytes.fromhex(key.removeprefix("sha256:")) for key in settings.api_keys)
        self._rates = Rates(settings.rate) if settings.rate else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it; and say in the log what became of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["state"] = {**scope.get("state", {})}
        number = uuid.uuid4().hex
        request_id.set(number)
        body = _Body(receive, self._settings)
        headers = {REQUEST_ID: number, **(DOCS if scope["path"] == "/docs" else {})}
        answer = _Answer(send, headers, body)
        started = time.monotonic()
        try:
            headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
            body.check_length(headers)
            self._check(scope, headers)
            async with asyncio.timeout(self._settings.request_seconds):
                await self._app(scope, body.receive, answer.send)
        except Refusal as refusal:
            await answer.refuse(refusal)
        except TimeoutError:
            slow = Refusal(503, "out_of_time", "there was no answer in time", {"retry-after": "5"})
            await answer.refuse(slow)
        except Exception:
            log.exception("request broke")
            await answer.refuse(Refusal(500, "internal", "something broke; the log tells more"))
        self._note(scope, answer.status, time.monotonic() - started)

    def _check(self, scope: Scope, headers: Mapping[str, str]) -> None:
        if scope["path"] in OPEN:
            return
        client = (scope.get("client") or ("",))[0]
        if self._keys:
            key = _key_in(headers)
            # every key is compared, and each in constant time: how long it takes tells nothing
            if not sum(hmac.compare_digest(key, each) for each in self._keys):
                raise Refusal(401, "no_key", "a key is needed: Authorization: Bearer KEY", KNOCK)
            client = key.hex()
        else:  # a page of another site must not reach what listens on this machine only, by whatever name
            host = headers.get("host", "").rpartition(":")[0] or headers.get("host", "")
            if _is_local(client) and (host not in OURS or headers.get("sec-fetch-site") == "cross-site"):
                raise Refusal(403, "foreign", "a service without keys answers to this machine only")
        if self._rates and (wait := self._rates.wait_for(client)):
            raise Refusal(429, "too_often", "too many requests; wait", {"retry-after": str(wait)})

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        self._metrics.request(route, scope["method"] if route != "none" else "any", status, seconds)
        fields = {
            "method": scope["method"],
            "route": route,
            "status": status,
            "seconds": round(seconds, 4),
            "stages": {step: round(s, 4) for step, s in scope["state"].get("timings", {}).items()},
        }
        log.info("%s %s %s in %.3f s", scope["method"], route, status, seconds, extra={"fields": fields})


def _key_in(headers: Mapping[str, str]) -> bytes:
    """SHA-256 of the key that a request brings: as a bearer, or as the password that a browser asks for."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            key = base64.b64decode(key, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            key = ""
    elif scheme.lower() != "bearer":
        key = ""
    return hashlib.sha256(key.strip().encode()).digest()


def _is_local(client: str) -> bool:
    return client.startswith("127.") or client == "::1"


class _Body:
    """The body as it comes, counted and timed."""

    def __init__(self, receive: Receive, settings: ServiceSettings) -> None:
        self._receive, self._settings = receive, settings
        self._bytes = 0
        self._due = time.monotonic() + settings.body_seconds
        self._waits_to_be_asked = False
        self.done = False

    def check_length(self, headers: Mapping[str, str]) -> None:
        length = headers.get("content-length", "")
        if length.isdecimal() and len(length) < 20:
            self._check(int(length))
        self.done = length in {"", "0"} and "transfer-encoding" not in headers
        self._waits_to_be_asked = "expect" in headers

    async def drain(self) -> None:
        """Read what is left: most clients listen only when they have sent all, and miss an earlier answer."""
        with suppress(Refusal):
            while not (self.done or self._waits_to_be_asked):
                await self.receive()

    async def receive(self) -> Message:
        if self.done:
            return await self._receive()
        try:
            async with asyncio.timeout(max(self._due - time.monotonic(), 0)):
                message = await self._receive()
        except TimeoutError as error:
            raise Refusal(408, "too_slow", "the request did not come in time") from error
        if message["type"] == "http.request":
            self._bytes += len(message.get("body", b""))
            self._check(self._bytes)
        self.done = not message.get("more_body", False)  # also when the client has gone
        return message

    def _check(self, n_bytes: int) -> None:
        if n_bytes > self._settings.max_bytes:
            raise Refusal(413, "too_large", f"a request may have {self._settings.max_bytes} bytes")


class _Answer:
    """What is sent back, with the headers that every answer has."""

    def __init__(self, send: Send, headers: Mapping[str, str], body: _Body) -> None:
        self._send, self._own, self._body = send, {**HEADERS, **headers}, body
        self.status = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            if self.status not in UNREAD:
                await self._body.drain()
            own = (
                self._own if self._body.done else {**self._own, "connection": "close"}
            )  # the rest is not read
            more = [(key.encode(), value.encode()) for key, value in own.items()]
            message = {**message, "headers": [*message["headers"], *more]}
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        """Answer in place of the route, unless it has begun to: then the connection breaks, and shows it."""
        if self.status:
            raise ConnectionAbortedError(refusal.code)
        body = json.dumps(refusal.body).encode()
        told = {
            "content-type": "application/json",
            "content-length": str(len(body)),
            **(refusal.headers or {}),
        }
        start = {
            "type": "http.response.start",
            "status": refusal.status_code,
            "headers": [(key.encode(), value.encode()) for key, value in told.items()],
        }
        await self.send(start)
        await self._send({"type": "http.response.body", "body": body})
