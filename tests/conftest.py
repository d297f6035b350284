from __future__ import annotations

import os
import socket
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub

import pytest

REAL_CONNECT = socket.socket.connect


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that opens a connection to somewhere is a broken test."""

    def refuse(self: socket.socket, address: object) -> None:
        if self.family == socket.AF_UNIX:  # to a process of the test itself
            return REAL_CONNECT(self, address)
        raise AssertionError(f"a test tried to connect to {address!r}")

    monkeypatch.setattr(socket.socket, "connect", refuse)


@pytest.fixture
def loopback(no_network: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections to servers of the test itself, and to nothing else."""

    def connect(self: socket.socket, address: tuple[str, int]) -> None:
        assert address[0] in ("127.0.0.1", "::1"), f"a test tried to connect to {address!r}"
        REAL_CONNECT(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The folder of real test material, which may not be copied into the project."""
    folder = os.environ.get("LMM_CLASSIFIER_REALDATA")
    if not folder:
        pytest.skip("LMM_CLASSIFIER_REALDATA is not set: it names the folder with data/, models/, badimages/")
    return Path(folder).resolve()
