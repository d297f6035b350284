from __future__ import annotations

import socket

import pytest

REAL_CONNECT = socket.socket.connect


@pytest.fixture
def loopback(no_network: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections to servers of the test itself, and to nothing else."""

    def connect(self: socket.socket, address: tuple[str, int]) -> None:
        assert address[0] in ("127.0.0.1", "::1"), f"a test tried to connect to {address!r}"
        REAL_CONNECT(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
