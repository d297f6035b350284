"""One battery over every registered detector, built-in or installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lmm_classifier import registry
from lmm_classifier.models.detection import Detections
from models_opened import opener, photos

Opened = Callable[[], Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(params=registry.names("detector"))
def opened(request: pytest.FixtureRequest, folder: Any, monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Opens the detector anew."""
    return opener("detector", request.param, folder, monkeypatch)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return photos()


class TestEveryDetector:
    def test_finds_finite_boxes_with_scores_and_labels(
        self, opened: Opened, images: list[Image.Image]
    ) -> None:
        detector = opened()
        assert 0 <= detector.min_score <= 1
        found = detector.detect(images)
        assert len(found) == len(images)
        for each in found:
            n = len(each.labels)
            assert (each.boxes.shape, each.boxes.dtype) == ((n, 4), np.float32)
            assert (each.scores.shape, each.scores.dtype) == ((n,), np.float32)
            assert np.isfinite(each.boxes).all()
            assert ((each.scores >= 0) & (each.scores <= 1)).all()
            assert (each.boxes[:, :2] <= each.boxes[:, 2:]).all()
            assert all(isinstance(label, str) and label for label in each.labels)

    def test_in_nothing_finds_nothing(self, opened: Opened) -> None:
        assert opened().detect([]) == []

    def test_answers_do_not_depend_on_batch_order_or_time(
        self, opened: Opened, images: list[Image.Image]
    ) -> None:
        detector, before = opened(), [image.tobytes() for image in images]
        found = detector.detect(images)
        for again in (
            [detector.detect([image])[0] for image in images],
            detector.detect(images[::-1])[::-1],
            opened().detect(images),
        ):
            for a, b in zip(found, again, strict=True):
                assert_same(a, b)
        assert [image.tobytes() for image in images] == before


def assert_same(a: Detections, b: Detections) -> None:
    assert a.labels == b.labels
    np.testing.assert_allclose(a.boxes, b.boxes, atol=1e-3)
    np.testing.assert_allclose(a.scores, b.scores, atol=2e-6)
