from __future__ import annotations

import os
import socket
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub

import pytest


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that opens a connection to somewhere is a broken test."""

    def refuse(self: socket.socket, address: object) -> None:
        raise AssertionError(f"a test tried to connect to {address!r}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real test material, which may not be copied into the project."""
    folder = os.environ.get("LMM_CLASSIFIER_REALDATA")
    if not folder:
        pytest.skip("LMM_CLASSIFIER_REALDATA is not set: it names the folder with data/, models/, badimages/")
    return Path(folder).resolve()
