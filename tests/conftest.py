from __future__ import annotations

import os
import socket
import warnings
from collections import Counter
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
os.environ.setdefault("OMP_NUM_THREADS", "1")  # there is a process per core

import pytest

REAL_CONNECT = socket.socket.connect
ANNOUNCEMENTS = (DeprecationWarning, PendingDeprecationWarning, FutureWarning)
announced: Counter[str] = Counter()
"""What libraries say they will change -> how many tests met it."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--deprecations", type=Path, metavar="FILE", help="Append what libraries deprecate, a line each."
    )


def pytest_warning_recorded(warning_message: warnings.WarningMessage) -> None:
    if issubclass(warning_message.category, ANNOUNCEMENTS):
        text = " ".join(str(warning_message.message).split())
        announced[f"{warning_message.category.__name__}: {text}"] += 1


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Not as failures: what is deprecated still works, and is to be mended before it does not."""
    if announced:
        terminalreporter.section("deprecated by libraries")
        for text, times in announced.most_common():
            terminalreporter.write_line(f"{times:5} x {text}")
    if config.option.deprecations:
        with config.option.deprecations.open("a", encoding="utf-8") as file:
            file.writelines(f"{text}\n" for text in announced)


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
