from __future__ import annotations

from collections.abc import Iterator

import pytest

from caption_server import QUICK, CaptionServer, captioning
from lmm_classifier.captioning.local import LocalModel
from lmm_classifier.captioning.server import Server
from lmm_classifier.captioning.source import CaptionSource


@pytest.fixture
def service(loopback: None) -> Iterator[CaptionServer]:
    with captioning() as server:
        yield server


@pytest.fixture(params=["model", "server"])
def source(request: pytest.FixtureRequest, service: CaptionServer) -> CaptionSource:
    """The two ways to the words, which must be the same by either."""
    return LocalModel.named("fake", 50) if request.param == "model" else Server(service.url, limits=QUICK)
