from __future__ import annotations

from collections.abc import Iterator

import pytest

from internet import Internet, internet
from strangers import NAMES, fresh


@pytest.fixture
def net(monkeypatch: pytest.MonkeyPatch) -> Iterator[Internet]:
    with internet(monkeypatch, fresh(NAMES)) as net:
        yield net
