"""The HTTP server: what uvicorn leaves to whoever runs it, and an end that comes in time."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from lmm_classifier.errors import ConfigError
from lmm_classifier.service_settings import ServiceSettings

log = logging.getLogger(__name__)

GRACE_S = 6
"""That requests have to end after SIGTERM: whoever stops a service waits ten seconds, then kills it."""
LINGER_S = 1.0  # for idle threads to end
KEEP_ALIVE_S = 5
MAX_HEADERS = 32 * 1024  # bytes
_FULL_BODY = json.dumps({"detail": "too many connections; try again", "code": "overloaded"}).encode()
FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nretry-after: 1\r\nconnection: close\r\n"
    b"content-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(_FULL_BODY), _FULL_BODY)
)


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
        timeout_graceful_shutdown=GRACE_S,
        timeout_keep_alive=KEEP_ALIVE_S,
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
    """uvicorn's, with a limit of connections and a time in which a request must have begun."""

    settings: ServiceSettings
    due: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        if len(self.connections) > self.settings.connections:
            transport.write(FULL)
            transport.close()
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Between two requests, the next one must begin in time; what has begun the guards watch."""
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop()
        elif self.due is None and not self.transport.is_closing():
            self.due = self.loop.call_later(self.settings.headers_seconds, self.transport.close)

    def _stop(self) -> None:
        if self.due is not None:
            self.due.cancel()
            self.due = None


def _leave_nobody_behind() -> None:
    """A model that is at work cannot be stopped, and Python would wait for its thread without end."""
    end = time.monotonic() + LINGER_S
    while busy := [t for t in threading.enumerate() if t is not threading.main_thread() and not t.daemon]:
        if time.monotonic() > end:
            log.warning("stopped while %d threads were still at work", len(busy))
            logging.shutdown()
            os._exit(130 if isinstance(sys.exception(), KeyboardInterrupt) else 143)
        time.sleep(0.02)
