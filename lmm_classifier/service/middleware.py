"""What every request passes before a route sees it: number, key, rate, size, pace and time."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import logging
import time
import uuid
from collections.abc import Callable, Mapping

from starlette.types import ASGIApp, Receive, Scope, Send

from lmm_classifier.config.service import ServiceSettings, is_loopback
from lmm_classifier.logging_config import request_id
from lmm_classifier.service.body_limits import LimitedBody, SentResponse
from lmm_classifier.service.errors import HttpError
from lmm_classifier.service.metrics import ServiceMetrics
from lmm_classifier.service.rate_limit import RateLimiter

log = logging.getLogger(__name__)

_REQUEST_ID = "x-request-id"
_FOR_ONE = frozenset({"/analyze_image/", "/analyze_image_upload/"})
_OPEN = frozenset({"/health", "/ready"})  # asked by what starts and stops the service, which has no key
MAX_HEADERS = 32 * 1024  # bytes
_GONE = 499  # what proxies call it when a client goes before it is answered; for the log
_DOCS = {  # FastAPI's page takes its script and its picture from elsewhere
    "content-security-policy": "default-src 'self'; script-src 'unsafe-inline' https://cdn.jsdelivr.net; "
    "style-src https://cdn.jsdelivr.net; img-src 'self' data: https://fastapi.tiangolo.com"
}
# Without ", Bearer", which a client may use all the same: Chromium reads a line as one challenge, and would
# show its user nothing.
_KNOCK = {"www-authenticate": 'Basic realm="lmm-classifier, any name, the key as password"'}


class GuardMiddleware:
    """An ASGI middleware; refuses in the form that the routes do.

    Args:
        app: what is guarded.
        settings: what a client may.
        metrics: counts each answer.
        check_room: raises a Refusal where there is no room for another photo.
    """

    def __init__(
        self, app: ASGIApp, settings: ServiceSettings, metrics: ServiceMetrics, check_room: Callable[[], None]
    ) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._check_room = check_room
        self._keys = tuple(bytes.fromhex(key.removeprefix("sha256:")) for key in settings.api_keys)
        self._rates = RateLimiter(settings.rate) if settings.rate else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or refuse it; and say in the log what became of it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope["state"] = {**scope.get("state", {})}
        number = uuid.uuid4().hex
        request_id.set(number)
        headers = {key.decode("latin-1"): value.decode("latin-1") for key, value in scope["headers"]}
        body = LimitedBody(receive, headers, self._settings)
        answer = SentResponse(
            send, {_REQUEST_ID: number, **(_DOCS if scope["path"] == "/docs" else {})}, body
        )
        started = time.monotonic()
        try:
            self._check(scope, headers)
            body.check_length()
            if scope["path"] in _FOR_ONE:  # before its form is taken apart, where all others wait
                self._check_room()
            await self._let_through(scope, body, answer)
        except HttpError as refusal:
            await _refuse(refusal, scope, body, answer)
        except Exception:
            log.exception("request broke")
            told = HttpError(500, "internal", "something broke; the log tells more")
            await _refuse(told, scope, body, answer)
        finally:
            self._note(scope, answer.status, time.monotonic() - started)

    async def _let_through(self, scope: Scope, body: LimitedBody, answer: SentResponse) -> None:
        """Run the route until it has answered, its time is up, or nobody waits for it any more."""
        route = asyncio.ensure_future(self._app(scope, body.receive, answer.send))
        gone = asyncio.ensure_future(body.abandoned())
        try:
            until = self._settings.request_seconds
            await asyncio.wait({route, gone}, timeout=until, return_when=asyncio.FIRST_COMPLETED)
            if answer.status and not gone.done():  # what streams has time for each of its parts
                await asyncio.wait({route, gone}, return_when=asyncio.FIRST_COMPLETED)
            if route.done():
                await route
            elif gone.done():
                answer.status = answer.status or _GONE
            else:
                raise HttpError(503, "out_of_time", "there was no answer in time", {"retry-after": "5"})
        finally:
            for task in (route, gone):
                task.cancel()
            await asyncio.gather(route, gone, return_exceptions=True)

    def _check(self, scope: Scope, headers: Mapping[str, str]) -> None:
        if sum(len(key) + len(value) for key, value in scope["headers"]) > MAX_HEADERS:
            raise HttpError(431, "headers_too_large", f"headers may have {MAX_HEADERS} bytes")
        if scope["path"] in _OPEN:
            return
        client = (scope.get("client") or ("",))[0]
        if self._keys:
            key = _key_in(headers)
            # every key is compared, and each in constant time: how long it takes tells nothing
            if key is None or not sum(hmac.compare_digest(key, each) for each in self._keys):
                raise HttpError(401, "no_key", "a key is needed: Authorization: Bearer KEY", _KNOCK)
            client = key.hex()
        # a page of another site must not reach what is for this machine only
        elif is_loopback(client) and (
            not is_loopback(_host_in(headers)) or headers.get("sec-fetch-site") == "cross-site"
        ):
            raise HttpError(403, "foreign", "a service without keys answers to this machine only")
        if self._rates and (wait := self._rates.wait_for(client)):
            raise HttpError(429, "too_often", "too many requests; wait", {"retry-after": str(wait)})

    def _note(self, scope: Scope, status: int, seconds: float) -> None:
        route = getattr(scope.get("route"), "path", "none")
        self._metrics.request(route, scope["method"], status, seconds)
        fields = {
            "method": scope["method"],
            "route": route,
            "status": status,
            "seconds": round(seconds, 4),
            "tasks": dict(scope["state"].get("tasks", {})),
            "stages": {step: round(s, 4) for step, s in scope["state"].get("timings", {}).items()},
        }
        log.info("%s %s %s in %.3f s", scope["method"], route, status, seconds, extra={"fields": fields})


async def _refuse(refusal: HttpError, scope: Scope, body: LimitedBody, answer: SentResponse) -> None:
    """Answer in place of the route, unless it has begun to: then the connection breaks, and shows it."""
    if answer.status:
        raise ConnectionAbortedError(refusal.code)
    await refusal.response()(scope, body.receive, answer.send)


def _key_in(headers: Mapping[str, str]) -> bytes | None:
    """SHA-256 of the key that a request brings: as a bearer, or as the password that a browser asks for."""
    scheme, _, key = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "basic":
        try:
            key = base64.b64decode(key, validate=True).decode().partition(":")[2]
        except ValueError:
            return None
    elif scheme.lower() != "bearer":
        return None
    return hashlib.sha256(key.strip().encode()).digest() if key.strip() else None


def _host_in(headers: Mapping[str, str]) -> str:
    host = headers.get("host", "")
    return host.partition("]")[0] if host.startswith("[") else host.partition(":")[0]
