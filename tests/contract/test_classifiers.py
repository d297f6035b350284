"""One battery over every registered classifier, built-in or installed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lmm_classifier import registry
from models_opened import opener, photos

Opened = Callable[[], Any]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return tmp_path_factory.mktemp("tiny")


@pytest.fixture(params=registry.names("classifier"))
def opened(request: pytest.FixtureRequest, folder: Any, monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Opens the classifier anew."""
    return opener("classifier", request.param, folder, monkeypatch)


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return photos()


class TestEveryClassifier:
    def test_gives_a_probability_per_class(self, opened: Opened, images: list[Image.Image]) -> None:
        classifier = opened()
        names = classifier.names
        assert isinstance(names, tuple)
        assert names
        assert all(isinstance(name, str) and name for name in names)
        rows = classifier.probabilities(images)
        assert (rows.shape, rows.dtype) == ((len(images), len(names)), np.float32)
        assert ((rows >= 0) & (rows <= 1)).all()
        assert len(np.unique(rows, axis=0)) == len(images)  # they do differ

    def test_of_nothing_says_nothing(self, opened: Opened) -> None:
        classifier = opened()
        rows = classifier.probabilities([])
        assert (rows.shape, rows.dtype) == ((0, len(classifier.names)), np.float32)

    def test_answers_do_not_depend_on_batch_order_or_time(
        self, opened: Opened, images: list[Image.Image]
    ) -> None:
        classifier, before = opened(), [image.tobytes() for image in images]
        rows = classifier.probabilities(images)
        alone = np.concatenate([classifier.probabilities([image]) for image in images])
        np.testing.assert_allclose(rows, alone, atol=2e-6)
        np.testing.assert_allclose(classifier.probabilities(images[::-1])[::-1], rows, atol=2e-6)
        np.testing.assert_array_equal(opened().probabilities(images), rows)
        assert [image.tobytes() for image in images] == before
