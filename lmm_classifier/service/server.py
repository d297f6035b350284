"""The HTTP server: what uvicorn leaves to whoever runs it, and an end that comes in time."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

import uvicorn
from fastapi import FastAPI
from starlette.formparsers import MultiPartParser
from uvicorn.protocols.http.h11_impl import H11Protocol

from lmm_classifier.config.service import ServiceSettings
from lmm_classifier.errors import ConfigError
from lmm_classifier.service.middleware import MAX_HEADERS

log = logging.getLogger(__name__)

_GRACE_S = 6
"""Seconds given to running requests after SIGTERM: whoever stops a service waits ten, then kills it."""
_SWITCH_S = 0.0005
"""That a thread which computes in Python keeps the loop waiting; Python's own 5 ms add up in ten threads."""
_SPOOLED = 4 * 2**20
"""Bytes of an upload that are not written to a file: Starlette's 1 MiB would have most photos on the disk."""
_LINGER_S = 1.0  # for idle threads to end
_KEEP_ALIVE_S = 5
_PHRASES = {400: b"Bad Request", 503: b"Service Unavailable"}
_SLOWEST = 8 * 1024  # bytes a second that a client must take of an answer


def serve(
    app: FastAPI, settings: ServiceSettings, host: str, port: int, on_bound: Callable[[int], None]
) -> None:
    """Serve until a signal says to stop; requests have a few seconds to end.

    Args:
        app: the service.
        settings: its limits of connections and headers.
        host: address or name to listen at.
        port: 0 takes any that is free.
        on_bound: is told the port.

    Raises:
        ConfigError: nothing can listen there.
    """
    sys.setswitchinterval(_SWITCH_S)
    MultiPartParser.spool_max_size = _SPOOLED
    server, socket = bound(app, settings, host, port)
    on_bound(socket.getsockname()[1])
    try:
        server.run([socket])
    finally:
        _leave_nobody_behind()


def bound(app: FastAPI, settings: ServiceSettings, host: str, port: int) -> tuple[uvicorn.Server, Any]:
    """A server, and the socket it will listen on; raises as `serve`."""
    config = uvicorn.Config(
        app,
        host=host,
        port=port,
        http=type("Protocol", (_Protocol,), {"settings": settings}),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=_GRACE_S,
        timeout_keep_alive=_KEEP_ALIVE_S,
        h11_max_incomplete_event_size=MAX_HEADERS,
    )
    told = logging.getLogger("uvicorn.error")
    told.disabled = True  # it would say in its words what is raised below
    try:
        socket = config.bind_socket()
    except SystemExit as error:
        raise ConfigError(
            f"cannot listen at {host}, port {port}: is the port taken? --port chooses another"
        ) from error
    finally:
        told.disabled = False
    socket.listen(config.backlog)  # from here on a client waits instead of being refused
    return uvicorn.Server(config), socket


class _Protocol(H11Protocol):
    """uvicorn's, with a limit of connections, and times for a request to begin and an answer to be taken."""

    settings: ServiceSettings
    looks: asyncio.TimerHandle | None = None
    idle_since: float | None = None
    left: float = float("inf")

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.settings.connections:
            transport.write(
                _refused(503, "overloaded", "too many connections; try again", b"retry-after: 1\r\n")
            )
            transport.close()
        self._note()
        self._look_later()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._note()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._note()

    def connection_lost(self, exc: Exception | None) -> None:
        if self.looks is not None:
            self.looks.cancel()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 -- h11's words
        """As every other refusal."""
        self.transport.write(_refused(400, "malformed", "this is no HTTP"))
        self.transport.close()

    def _note(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self.idle_since = None  # what has begun the guards watch
        elif self.idle_since is None:
            self.idle_since, self.left = self.loop.time(), float("inf")

    def _look_later(self) -> None:
        self.looks = self.loop.call_later(self.settings.headers_seconds / 4, self._look)

    def _look(self) -> None:
        """Hang up where the next request does not begin in time, or where nobody takes the last answer."""
        seconds = self.settings.headers_seconds
        late = self.idle_since is not None and self.loop.time() - self.idle_since >= seconds
        if late or self.transport.is_closing():
            left = self.transport.get_write_buffer_size()
            if not left:
                self.transport.close()
            elif left > self.left - _SLOWEST * seconds / 4:
                self.transport.abort()
            self.left = left
        self._look_later()


def _refused(status: int, code: str, detail: str, headers: bytes = b"") -> bytes:
    """A refusal before there is a request that the guards could see."""
    body = json.dumps({"detail": detail, "code": code}).encode()
    phrase, number = _PHRASES[status], uuid.uuid4().hex.encode()
    return (
        b"HTTP/1.1 %d %b\r\n%bconnection: close\r\ncontent-type: application/json\r\n"
        b"x-request-id: %b\r\ncontent-length: %d\r\n\r\n%b"
        % (status, phrase, headers, number, len(body), body)
    )


def _leave_nobody_behind() -> None:
    """A model that is at work cannot be stopped, and Python would wait for its thread without end."""
    end = time.monotonic() + _LINGER_S
    while busy := [t for t in threading.enumerate() if t is not threading.main_thread() and not t.daemon]:
        if time.monotonic() > end:
            log.warning("stopped while %d threads were still at work", len(busy))
            logging.shutdown()
            os._exit(130 if isinstance(sys.exception(), KeyboardInterrupt) else 143)
        time.sleep(0.02)
