"""The one function that fetches a URL, and its sisters that post: tries, waits and redirects."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lmm_classifier.errors import FetchError
from lmm_classifier.fetch.connection import OK, Clock, HttpRequest, HttpResponse, TransientError, exchange
from lmm_classifier.fetch.guard import Guard
from lmm_classifier.fetch.limits import DEFAULT_LIMITS, PICTURE_LIMITS, FetchLimits
from lmm_classifier.fetch.url import Url, read_url

_AGAIN = frozenset({429, 500, 502, 503, 504})  # answers that a second try may improve
_REDIRECTS = frozenset({301, 302, 303, 307, 308})

_logger = logging.getLogger(__name__)


def fetch(
    url: str,
    *,
    guard: Guard | None = None,
    limits: FetchLimits | None = None,
    headers: Mapping[str, str] | None = None,
) -> bytes:
    """The body of the answer to a GET.

    Args:
        url: http or https, without user name.
        guard: to pass if somebody else gave the URL: where it may lead to.
        limits: what it may cost; `PICTURE_LIMITS` with a guard and `DEFAULT_LIMITS` without one.
        headers: sent to the host of `url` alone, and with a guard to `url` alone: a redirect to another one
            goes without them.

    Raises:
        FetchError: it is no such URL, or there was no whole answer of status 200 within the limits. With a
            guard the error is the same whatever was wrong ("image_url_not_fetchable"), but for an answer that
            is too large, and the reason is in the log.
    """
    if guard is None:
        request = HttpRequest("GET", _read_own(url), headers or {})
        return _insisted(request, limits or DEFAULT_LIMITS)
    limits = limits or PICTURE_LIMITS
    try:
        return _insisted(HttpRequest("GET", _read_strange(url), headers or {}, guard=guard), limits)
    except FetchError as error:
        _logger.info("a stranger's URL is not fetched: %s", error)
        if error.code == "too_large":
            message = f"the image of this URL has more than {limits.max_bytes} bytes"
            raise FetchError("too_large", message) from None
        raise FetchError("image_url_not_fetchable", "no image can be fetched from this URL") from None


def post_json(
    url: str, value: Any, *, limits: FetchLimits = DEFAULT_LIMITS, headers: Mapping[str, str] | None = None
) -> bytes:
    """`post`, of a value as JSON."""
    body = json.dumps(value, allow_nan=False).encode()
    return post(url, body, "application/json", limits=limits, headers=headers)


def post(
    url: str,
    body: bytes,
    content_type: str,
    *,
    limits: FetchLimits = DEFAULT_LIMITS,
    headers: Mapping[str, str] | None = None,
    stop: threading.Event | None = None,
) -> bytes:
    """The body of the answer to a POST; takes and raises what an unguarded `fetch` does.

    A redirect is not followed: what is posted is meant for this address. Once `stop` is set, by whoever does
    not want the answer any more, it is not tried again.
    """
    sent = {"Content-Type": content_type, **(headers or {})}
    return _insisted(HttpRequest("POST", _read_own(url), sent, body), limits, stop)


def check_url(url: str) -> None:
    """Whether a URL is one that `fetch` takes; nothing is opened.

    Raises:
        FetchError: it is not.
    """
    _read_own(url)


def _read_own(url: str) -> Url:
    try:
        return read_url(url)
    except ValueError as error:
        raise FetchError("bad_url", f"{url[:200]!r} is no URL to fetch: {error}") from error


def _read_strange(url: str) -> Url:
    try:
        return read_url(url, international=True)
    except ValueError as error:
        raise FetchError("bad_url", f"it is no URL to fetch: {error}") from error


def _insisted(request: HttpRequest, limits: FetchLimits, stop: threading.Event | None = None) -> bytes:
    stop = stop or threading.Event()
    clock = Clock(time.monotonic() + limits.total_s)
    wait, left = limits.wait_s, limits.tries
    while left:
        left -= 1
        try:
            return _followed(request, limits, clock)
        except TransientError as error:
            invited = limits.patient and error.after > 0
            pause = error.after if invited else max(wait, error.after)
            left += invited
            if not left or clock.left() <= pause or stop.wait(pause):
                raise FetchError(error.code, error.message, error.status, error.said) from error
        wait *= 1 if invited else 2
    raise ValueError(f"tries must be at least 1, got {limits.tries}")


def _followed(first: HttpRequest, limits: FetchLimits, clock: Clock) -> bytes:
    request = first
    for _ in range(limits.redirects + 1):
        answer = exchange(request, limits, clock)
        if answer.status == OK:
            return answer.body
        if answer.status not in _REDIRECTS:
            raise _bad_status(first, answer)
        request = _redirected(first, request, answer.location)
    raise FetchError("redirected", f"{first.name}: redirected more than {limits.redirects} times")


def _redirected(first: HttpRequest, last: HttpRequest, location: str) -> HttpRequest:
    """What a redirect asks for, if it may be followed."""
    try:
        there = last.url.joined(location, international=first.guard is not None)
    except ValueError as error:
        raise FetchError(
            "bad_url", f"{first.name}: redirected to what is no URL to fetch: {error}"
        ) from error
    at_home = there.origin == first.url.origin and first.guard is None
    request = replace(first, url=there, headers=first.headers if at_home else {})
    downgraded = (last.url.scheme, there.scheme) == ("https", "http")
    if not location or downgraded or first.body is not None:
        goal = request.name if location else "nowhere"
        raise FetchError("redirected", f"{first.name}: redirected to {goal}, which is not followed")
    return request


def _bad_status(request: HttpRequest, answer: HttpResponse) -> FetchError:
    kind = TransientError if answer.status in _AGAIN else FetchError
    said = answer.body.decode("utf-8", "replace")
    error = kind("bad_status", f"{request.name}: the server answers {answer.status}", answer.status, said)
    if isinstance(error, TransientError):
        error.after = answer.retry_after
    return error
