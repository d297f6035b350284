"""`service:` of the settings: how `lmm-classifier serve` listens, what it offers and what it refuses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from lmm_classifier.fetch.guard import PORTS, Guard
from lmm_classifier.ranges import BatchSize, Flag, Seconds

Positive = Annotated[int, Field(strict=True, ge=1)]


class FetchSettings(BaseModel):
    """Which URLs of strangers are fetched.

    Attributes:
        domains: "example.org" is itself, ".example.org" what is below it; empty: every public one.
        ports: that may be asked.
        forbidden: networks that are public and yet one's own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    domains: tuple[str, ...] = ()
    ports: tuple[Annotated[int, Field(ge=1, le=65535)], ...] = PORTS
    forbidden: tuple[str, ...] = ()

    def guard(self) -> Guard:
        """What a fetch is given."""
        return Guard(ports=self.ports, domains=self.domains, forbidden=self.forbidden)


class ServiceSettings(BaseModel):
    """What the service does, and what one client may cost it.

    Attributes:
        operations: name of an operation -> options of its step that the server chooses, such as the model;
            None leaves the operation out.
        store: folder of the collection classifiers; None is that of the step `classify`.
        fetch: which URLs are fetched; None fetches none.
        api_keys: "sha256:" and 64 hex digits each, of the keys that are let in; none lets everybody in, on
            this machine only.
        max_bytes: of a request's body.
        max_tasks: of a request.
        body_seconds: for a request's body to arrive.
        request_seconds: for everything; who is not answered by then is told so.
        at_once: photos being worked on at once, waiting ones included; more are sent away.
        threads: steps that run at once.
        batch_size: photos that go through a step together.
        wait_seconds: how long the first photo before an idle step waits for company.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    operations: Mapping[str, Mapping[str, Any] | None] = Field(default_factory=dict)
    store: Path | None = None
    fetch: FetchSettings | None = None
    api_keys: tuple[Annotated[str, Field(pattern="^sha256:[0-9a-f]{64}$")], ...] = ()
    max_bytes: Positive = 32 * 2**20
    max_tasks: Positive = 32
    body_seconds: Seconds = 15.0
    request_seconds: Seconds = 60.0
    at_once: Positive = 32
    threads: Positive = 2
    batch_size: BatchSize = 16
    wait_seconds: Annotated[float, Field(strict=True, ge=0, le=1)] = 0.004
    warm_up: Flag = False
