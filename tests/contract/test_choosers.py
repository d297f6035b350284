"""One battery over every registered chooser, built-in or installed."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from PIL import Image

from lmm_classifier import registry
from lmm_classifier.models import loading
from lmm_classifier.models.base import AnswerForm, Chooser, Question
from lmm_classifier.models.spec import ModelSpec
from models_opened import photos
from vlm_server import CHAT, serving, watching

Opened = Callable[[], Chooser]
LABELS = ("three", "unknown", "seven")
FORMS: tuple[AnswerForm, ...] = ("text", "letter", "yes_no")


@pytest.fixture(params=registry.names("chooser"))
def opened(
    request: pytest.FixtureRequest, loopback: None, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Opened]:
    """Opens the chooser anew: with its tiny checkpoint, or its server."""
    with serving({CHAT: watching}) as server:
        specs = {
            "qwen-vl": ModelSpec("qwen-vl", "shipped:qwen2-vl-digits", dtype="float32"),
            "openai_api": ModelSpec("openai_api", server.weights),
        }

        def open_again() -> Chooser:
            loading.reset()
            return loading.load_chooser(specs.get(request.param, ModelSpec(request.param)))

        yield open_again


@pytest.fixture(scope="module")
def images() -> list[Image.Image]:
    return photos()


def asked(images: list[Image.Image], form: AnswerForm) -> list[Question]:
    options = ("Yes", "No") if form == "yes_no" else LABELS
    return [Question(image, "Which label fits the image best?", options, form) for image in images]


@pytest.mark.parametrize("form", FORMS)
class TestEveryChooser:
    def test_gives_a_logarithm_per_option(
        self, opened: Opened, images: list[Image.Image], form: AnswerForm
    ) -> None:
        questions = asked(images, form)
        rated = opened().log_likelihoods(questions, 4)
        assert len(rated) == len(questions)
        for question, values in zip(questions, rated, strict=True):
            assert (values.shape, values.dtype) == ((len(question.options),), np.float32)
            assert np.isfinite(values).all()
            assert (values <= 0).all()

    def test_asked_nothing_says_nothing(self, opened: Opened, form: AnswerForm) -> None:
        assert opened().log_likelihoods([], 4) == []

    def test_answers_do_not_depend_on_batch_order_or_time(
        self, opened: Opened, images: list[Image.Image], form: AnswerForm
    ) -> None:
        chooser, questions, before = opened(), asked(images, form), [image.tobytes() for image in images]
        rated = chooser.log_likelihoods(questions, 4)
        for other in (
            [chooser.log_likelihoods([question], 1)[0] for question in questions],
            chooser.log_likelihoods(questions[::-1], 64)[::-1],
            opened().log_likelihoods(questions, 4),
        ):
            np.testing.assert_allclose(other, rated, atol=1e-3, rtol=1e-4)
        assert [image.tobytes() for image in images] == before
