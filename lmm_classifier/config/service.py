"""`service:` of the settings: what is offered, who is let in, and what a client may cost."""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field

from lmm_classifier.fetch.guard import PORTS, Guard
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.options import BatchSize, Flag, Seconds
from lmm_classifier.yaml_settings import Settings

_Count = Annotated[int, Field(strict=True, ge=1)]
_NO_KEY = f"sha256:{hashlib.sha256(b'').hexdigest()}"


def _of_a_key(digest: str) -> str:
    if digest == _NO_KEY:
        raise ValueError("this is the digest of nothing; `lmm-classifier key` makes a key")
    return digest


_KeyDigest = Annotated[str, Field(pattern="^sha256:[0-9a-f]{64}$"), AfterValidator(_of_a_key)]


def is_loopback(host: str) -> bool:
    """Whether a name or an address means this machine, and nothing else reaches it there."""
    try:
        return ipaddress.ip_address(host.removeprefix("[").removesuffix("]")).is_loopback
    except ValueError:
        return host.lower().removesuffix(".") == "localhost"


class FetchSettings(Settings):
    """`service.fetch:` which URLs of strangers are fetched.

    Attributes:
        enabled: False fetches none.
        domains: "example.org" is itself, ".example.org" what is below it; empty: every public one.
        ports: that may be asked.
        forbidden: networks that are public and yet one's own, such as "203.0.113.0/24".
    """

    enabled: Flag = False
    domains: tuple[str, ...] = ()
    ports: Annotated[tuple[Annotated[int, Field(ge=1, le=65535)], ...], Field(min_length=1)] = PORTS
    forbidden: tuple[str, ...] = ()

    def guard(self) -> Guard:
        """What a fetch is given.

        Raises:
            ConfigError: a domain or a network is none.
        """
        return Guard(ports=self.ports, domains=self.domains, forbidden=self.forbidden)


class ServiceSettings(Settings):
    """`service:` what the service does.

    Attributes:
        operations: name of an operation -> options of its step that the server chooses, such as the model;
            None leaves the operation out.
        persons, faces: the detectors; None takes those that `run --where` does.
        store: folder of the collection classifiers; None is that of the step `classify`.
        fetch: which URLs are fetched.
        api_keys: "sha256:" and 64 hex digits each, of the keys that are let in; without one everybody on this
            machine is.
        rate: requests a minute of one key or, without keys, one address; None counts none.
        max_bytes: of a form; any other body has a MiB at most.
        max_tasks: of a request.
        max_images: of a request for many.
        headers_seconds, body_seconds: for a request's headers and its body to arrive.
        request_seconds: for everything; who is not answered by then is told so. Of many photos, for each.
        connections: open at once.
        at_once: photos worked on at once; more are sent away.
        max_pixels_at_once: of those photos together; the next one waits.
        threads: steps that run at once.
        batch_size: photos that go through a step together.
        wait_seconds: how long the first photo before an idle model waits for company.
        warm_up: open the models of all operations before the first request, not with it.
        memory_budget: bytes of weights that stay open; of more, the least recently used model is closed.
    """

    operations: Mapping[str, Mapping[str, Any] | None] = Field(default_factory=dict)
    persons: ModelSpec | None = None
    faces: ModelSpec | None = None
    store: Path | None = None
    fetch: FetchSettings = FetchSettings()
    api_keys: tuple[_KeyDigest, ...] = ()
    rate: _Count | None = None
    max_bytes: _Count = 32 * 2**20
    max_tasks: Annotated[int, Field(strict=True, ge=1, le=256)] = 32
    max_images: _Count = 256
    headers_seconds: Seconds = 10.0
    body_seconds: Seconds = 15.0
    request_seconds: Seconds = 60.0
    connections: _Count = 512
    at_once: _Count = 32
    max_pixels_at_once: _Count = 200_000_000
    threads: _Count = 2
    batch_size: BatchSize = 16
    wait_seconds: Annotated[float, Field(strict=True, ge=0, le=1)] = 0.004
    warm_up: Flag = False
    memory_budget: _Count | None = None
