"""The Chromium of this machine, and a service whose page it uses."""

from __future__ import annotations

import base64
import io
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Locator,
    Page,
    Request,
    expect,
    sync_playwright,
)

import served
from lmm_classifier.api.hybrid_classifier import HybridClassifier
from lmm_classifier.config.pipeline import PipelineConfig
from served import FAKES, Served, make_index

OPERATIONS = FAKES | {"embed_dino_v3": {"encoder": {"family": "onnx", "weights": "./nowhere.onnx"}}}
"""Operations that need no checkpoint, and one that has none."""
ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def serving(config: Mapping[str, Any]) -> AbstractContextManager[Served]:
    """The service of these settings, at a free port of this machine."""
    return served.serving(HybridClassifier(PipelineConfig.model_validate(config)))


def colour_settings(folder: Path, **service: Any) -> dict[str, Any]:
    """Settings of a service that tells red from green from blue pictures, which it finds in folder/corpus."""
    if not (folder / "index").exists():
        make_index(folder)
    return {
        "encoder": {"family": "fake"},
        "retrieval": {"index_path": folder / "index"},
        "rerank": {"family": "fake", "model_name": "green", "self_test": False},
        "service": {"operations": OPERATIONS, **service},
    }


@contextmanager
def chromium() -> Iterator[Browser]:
    """Skips the test where there is none."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("needs chromium or google-chrome on the PATH")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield browser
        browser.close()


@dataclass
class Watched:
    """A tab, and what it did: `requests` are all it made, `complaints` what its console and scripts said."""

    page: Page
    requests: list[Request] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.page.on("request", lambda request: self.requests.append(request))
        self.page.on("console", self._heard)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(f"dialog {dialog.message}"))

    def _heard(self, message: ConsoleMessage) -> None:
        # that a request was refused is no complaint about the page; a test that refuses one looks at the page
        if not message.text.startswith("Failed to load resource: the server responded with"):
            self.complaints.append(f"{message.type}: {message.text}")

    def afresh(self, url: str) -> None:
        """As if it had just been opened there."""
        self.page.unroute_all()
        self.page.evaluate("() => localStorage.clear()")
        self.requests.clear()
        self.complaints.clear()
        self.page.goto(url)
        self.page.wait_for_selector("[name=operation]")

    @property
    def origins(self) -> set[str]:
        """Whom it asked; what is in the page itself, or made by it, is nobody's."""
        parts = [urlsplit(request.url) for request in self.requests]
        return {f"{part.scheme}://{part.netloc}/" for part in parts if part.scheme not in {"data", "blob"}}


@contextmanager
def tab(browser: Browser, url: str, ready: str = "[name=operation]", **options: Any) -> Iterator[Watched]:
    """A new tab with nothing remembered, 1280 x 800 unless told otherwise, at a page when it is ready."""
    context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
    context.set_default_timeout(20_000)
    watched = Watched(context.new_page())
    watched.page.goto(url)
    watched.page.wait_for_selector(ready)
    try:
        yield watched
    finally:
        context.close()


DIFFERING = (
    "(all, wanted) => all.filter(box => box.checked !== wanted.includes(box.value)).map(box => box.id)"
)


def choose(page: Page, photo: Path | None, *operations: str) -> None:
    """Take a photo, and these operations and no others."""
    boxes = page.locator("[name=operation]")
    for name in boxes.evaluate_all(DIFFERING, operations):
        page.click(f"#{name}")
    if photo is not None:
        page.set_input_files("#photo", photo)
        expect(page.locator("#about")).to_contain_text(re.compile(r"px$|cannot show it"))


def look(page: Page, photo: Path | None, *operations: str) -> None:
    """Ask, and wait for the answer."""
    choose(page, photo, *operations)
    page.get_by_role("button", name="Look").click()
    expect(page.get_by_role("status")).to_contain_text("Done in", timeout=30_000)  # a first one opens models


def parameter(page: Page, operation: str, key: str) -> Locator:
    return page.locator(f".operation:has(#operation-{operation}) [data-key={key}]")


def canvas(page: Page) -> np.ndarray:
    """What is drawn, uint8 (h, w, 3)."""
    url = page.evaluate("() => document.querySelector('canvas').toDataURL()")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB"))
