"""One battery over every registered captioner, built-in or installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from PIL import Image

from lmm_classifier import registry
from models_opened import opener, photos

Opened = Callable[[], Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(params=registry.names("captioner"))
def opened(request: pytest.FixtureRequest, folder: Any, monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Opens the captioner anew."""
    return opener("captioner", request.param, folder, monkeypatch)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return photos()


class TestEveryCaptioner:
    def test_says_something_about_each(self, opened: Opened, images: list[Image.Image]) -> None:
        texts = opened().captions(images, None, 8)
        assert len(texts) == len(images)
        assert all(isinstance(text, str) for text in texts)

    def test_of_nothing_says_nothing(self, opened: Opened) -> None:
        assert opened().captions([], None, 8) == []

    def test_answers_do_not_depend_on_batch_order_or_time(
        self, opened: Opened, images: list[Image.Image]
    ) -> None:
        captioner, before = opened(), [image.tobytes() for image in images]
        for prompt in (None, "a photo of"):
            texts = captioner.captions(images, prompt, 8)
            assert [captioner.captions([image], prompt, 8)[0] for image in images] == texts
            assert captioner.captions(images[::-1], prompt, 8)[::-1] == texts
            assert opened().captions(images, prompt, 8) == texts
        assert [image.tobytes() for image in images] == before

    def test_a_longer_one_begins_like_a_shorter_one(self, opened: Opened, images: list[Image.Image]) -> None:
        captioner = opened()
        short, long = (captioner.captions(images[:2], None, n) for n in (1, 12))
        for few, more in zip(short, long, strict=True):
            assert len(few) <= len(more)
