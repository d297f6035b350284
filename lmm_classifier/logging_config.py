"""Lines on standard error, plain or as JSON: the log of this package, and what commands tell the person.

As a library it touches no logger but its own; what commands do to those of others is `silence_libraries`.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Sequence
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import IO, Literal

PACKAGE = "lmm_classifier"
PYTHON_WARNINGS = "py.warnings"
"""The logger of what any library warns of in a command."""
_LIBRARIES = {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_VERBOSITY": "error"}
"""Environment variables of libraries that show their warnings by handlers of their own."""
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)
"""Of the request that the service is at; every record that is made then bears it."""
_Level = Literal["DEBUG", "INFO", "WARNING", "ERROR"]


class JsonFormatter(logging.Formatter):
    """One JSON object per record: time (UTC, ISO 8601), level, logger, message, request_id and error if any.

    What a call passes in `extra={"fields": {...}}` is added as it is.
    """

    def format(self, record: logging.LogRecord) -> str:
        body = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **({"request_id": current} if (current := request_id.get()) else {}),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            body["error"] = self.formatException(record.exc_info)
        return json.dumps(body, default=str)


def silence_libraries() -> None:
    """For a program whose standard error is ours alone: keep off it what libraries warn of and log.

    Their Python warnings become records of the logger PYTHON_WARNINGS, shown by those who show that.
    """
    for name, value in _LIBRARIES.items():
        os.environ.setdefault(name, value)
    logging.captureWarnings(True)
    logging.getLogger().addHandler(logging.NullHandler())  # without any, Python shows what has no handler


def tell(text: str) -> None:
    """Write one line for the person who runs a command; where log lines are JSON, it is one of them."""
    handlers = [h for h in logging.getLogger(PACKAGE).handlers if isinstance(h, _OurHandler)]
    if handlers and isinstance(handlers[0].formatter, JsonFormatter):
        level = {"error": logging.ERROR, "warning": logging.WARNING}.get(text.partition(":")[0], logging.INFO)
        handlers[0].handle(logging.LogRecord(PACKAGE, level, "", 0, text, None, None))
    else:
        sys.stderr.write(f"{text}\n")


class _OurHandler(logging.StreamHandler[IO[str]]):
    """Marks the handler that a second call replaces."""


def setup_logging(
    level: _Level = "INFO",
    json: bool = False,
    stream: IO[str] | None = None,
    loggers: Sequence[str] = (PACKAGE,),
) -> None:
    """Show the log records of some loggers; calling it again replaces the former setting of each.

    Args:
        level: least severe level shown.
        json: one JSON object per line instead of plain text.
        stream: where to; standard error by default.
        loggers: whose records, with all below them, are shown; this package's, if none are named.
    """
    handler = _OurHandler(stream or sys.stderr)
    plain = logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s", datefmt="%H:%M:%S")
    handler.setFormatter(JsonFormatter() if json else plain)
    for logger in map(logging.getLogger, loggers):
        for former in [h for h in logger.handlers if isinstance(h, _OurHandler)]:
            logger.removeHandler(former)
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False  # else a host that logs to its root would print every line twice
