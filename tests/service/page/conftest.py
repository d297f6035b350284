"""A tab that every test finds as if it had just been opened; each file has its own `service`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page

from browser import Watched, chromium, tab
from served import Served
from synthetic import COLOURS, picture


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def opened(browser: Browser, service: Served) -> Iterator[Watched]:
    with tab(browser, service.url) as once:
        yield once


@pytest.fixture
def watched(opened: Watched, service: Served) -> Iterator[Watched]:
    """The page, which in no test may ask strangers, break the rules it is sent with, or complain."""
    opened.afresh(service.url)
    yield opened
    assert opened.origins == {service.url}
    assert opened.complaints == []


@pytest.fixture
def page(watched: Watched) -> Page:
    return watched.page


@pytest.fixture
def red(tmp_path: Path) -> Path:
    picture(COLOURS["red"], 7).save(tmp_path / "red.png")
    return tmp_path / "red.png"
