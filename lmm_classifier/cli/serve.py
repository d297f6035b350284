"""`serve`: the service; `key` makes a key for it."""

from __future__ import annotations

import hashlib
import secrets
import sys
from pathlib import Path
from typing import Annotated

import typer

from lmm_classifier.errors import ConfigError
from lmm_classifier.logging_config import PACKAGE, setup_logging
from lmm_classifier.optional import extra

_LOGGERS = (PACKAGE, "uvicorn", "python_multipart")  # what serves says what is wrong with a request


def serve(
    context: typer.Context,
    config: Annotated[Path, typer.Option("--config", "-c", help="Settings; `service:` says how it serves.")],
    host: Annotated[
        str, typer.Option(help="Address to listen at; another machine's needs a key.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8000,
) -> int:
    """Serve classification and every other step over HTTP; the page at / shows how. Ctrl-C stops it.

    IMAGE_EMBED_DEVICE=cuda or cpu is where models run that name no device; IMAGE_EMBED_REQUIRE_GPU=1 does
    not start without a GPU.
    """
    from lmm_classifier.api.hybrid_classifier import HybridClassifier
    from lmm_classifier.config.service import is_loopback

    with extra("uvicorn", "service"):
        from lmm_classifier.service.app import create_app
        from lmm_classifier.service.server import serve as serve_app

    classifier = HybridClassifier.from_yaml(config)
    settings = classifier.config.service
    if not settings.api_keys and not is_loopback(host):
        raise ConfigError(
            f"{host} can be reached from other machines: put a key into service.api_keys of {config} "
            "(`lmm-classifier key` makes one), or listen at 127.0.0.1"
        )
    as_json = bool(context.find_root().params["log_json"]) or not sys.stderr.isatty()
    setup_logging("INFO", json=as_json, loggers=_LOGGERS)
    classifier.check_index()
    app = create_app(classifier)
    shown = f"[{host}]" if ":" in host else host
    serve_app(app, settings, host, port, lambda bound: typer.echo(f"http://{shown}:{bound}/"))
    return 0


def key() -> int:
    """Make a key for the service, and what to put into `service.api_keys` for it."""
    made = secrets.token_urlsafe(32)
    typer.echo(f"key:      {made}")
    typer.echo(f"api_keys: sha256:{hashlib.sha256(made.encode()).hexdigest()}")
    return 0
