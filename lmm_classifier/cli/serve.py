"""`serve`: the service."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated

import typer

from lmm_classifier.errors import ConfigError

GRACE_S = 8
"""Seconds that requests have to end after SIGTERM; whoever stops a service waits ten."""


def run(
    config: Annotated[Path, typer.Option("--config", "-c", help="Settings; `service:` says how it serves.")],
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 8000,
) -> int:
    """Serve classification and every step over HTTP; the page at / shows how. Ctrl-C stops it."""
    from lmm_classifier.classifier import HybridClassifier
    from lmm_classifier.extras import required_extra

    with required_extra("service"):
        import uvicorn

        from lmm_classifier.service.app import create_app
    classifier = HybridClassifier.from_yaml(config)
    settings = classifier.config.service
    if not settings.api_keys and not _is_loopback(host):
        raise ConfigError(
            f"{host} can be reached from other machines: give service.api_keys in {config}, or listen at "
            "127.0.0.1"
        )
    classifier.load()
    app = create_app(classifier, settings)
    typer.echo(f"http://{host}:{port}/")
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_config=None,
        access_log=False,
        server_header=False,
        limit_concurrency=settings.connections,
        timeout_graceful_shutdown=GRACE_S,
        timeout_keep_alive=5,
    )
    return 0


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
