"""What is in a photo: by a trained classifier, by the names of labels, and in words."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import TypeAdapter, ValidationError

from lmm_classifier import PipelineConfig
from lmm_classifier.decision.ranking import ranked
from lmm_classifier.errors import ConfigError, EncoderMismatchError, ModelError
from lmm_classifier.models import loading
from lmm_classifier.models.loading import load_encoder
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.pipeline import Pipeline
from lmm_classifier.steps.caption import Caption
from lmm_classifier.steps.detect import Detect
from lmm_classifier.steps.embed import Embed
from lmm_classifier.steps.focus import Focus
from lmm_classifier.steps.label import Label
from lmm_classifier.steps.zero_shot import ZeroShot
from lmm_classifier.types import LabelScore, Region, Sample, required
from synthetic import COLOURS, picture

FAKE = ModelSpec("fake")


def plain(colour: tuple[int, int, int] | str, size: tuple[int, int] = (8, 8)) -> Sample:
    return Sample.from_image("photo", Image.new("RGB", size, colour))


class Says:
    """A model that gives what it is told, whatever it is shown."""

    def __init__(self, answer: Any, names: tuple[str, ...] = ("a", "b, c", "d")) -> None:
        self.answer, self.names = answer, names
        self.asked: list[int] = []

    def probabilities(self, images: Sequence[Image.Image]) -> Any:
        return self._answer(images)

    def captions(self, images: Sequence[Image.Image], prompt: str | None, max_length: int) -> Any:
        return self._answer(images)

    def _answer(self, images: Sequence[Image.Image]) -> Any:
        self.asked.append(len(images))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer(images) if callable(self.answer) else self.answer


@pytest.fixture
def says():
    with ExitStack() as stack:

        def install(kind: Any, answer: Any) -> Says:
            model = Says(answer)
            stack.enter_context(loading.substituted(kind, FAKE, model))
            return model

        yield install


class TestRanked:
    NAMES = (("a",), ("b", "c"), ("d",), ("e",))

    def test_best_first_ties_in_the_order_of_the_classes(self) -> None:
        found = ranked(np.asarray([0.1, 0.3, 0.3, 0.3], np.float32), self.NAMES, None, 0.0)
        assert [each.label for each in found] == ["b", "d", "e", "a"]
        assert found[0] == LabelScore("b", float(np.float32(0.3)), ("c",))

    def test_cut_by_rank_and_by_score(self) -> None:
        values = np.asarray([0.5, 0.25, 0.125, 0.125], np.float32)
        assert [e.label for e in ranked(values, self.NAMES, 2, 0.0)] == ["a", "b"]
        assert [e.label for e in ranked(values, self.NAMES, None, 0.25)] == ["a", "b"]  # at least, not above
        assert ranked(values, self.NAMES, None, 0.51) == ()


class TestLabel:
    def test_shares_of_the_light_with_synonyms(self) -> None:
        [found] = Label(FAKE).run([plain((99, 49, 49))])
        [labels] = required(found.labelings)
        assert labels == (
            LabelScore("red", 0.5, ("crimson",)),
            LabelScore("green", 0.25),
            LabelScore("blue", 0.25),
        )

    def test_every_region_looked_at_has_its_own(self) -> None:
        image = Image.new("RGB", (20, 10), (0, 0, 0))
        image.paste((0, 255, 0), (10, 0, 20, 10))
        sample = Sample.from_image("photo", image)
        sample = replace(sample, regions=(*sample.regions, Region((10, 0, 20, 10), "person")))
        [all_of_them], [only] = (
            Label(FAKE, 1).run([sample]),
            Pipeline((Focus("person"), Label(FAKE, 1))).run([sample]),
        )
        assert [labels[0].label for labels in required(all_of_them.labelings)] == ["green", "green"]
        assert len(required(only.labelings)) == 1
        assert required(only.labelings)[0][0].score > required(all_of_them.labelings)[0][0].score

    def test_one_call_for_a_batch(self, says) -> None:
        model = says("classifier", lambda images: np.full((len(images), 3), 0.25, np.float32))
        Label(FAKE).run([plain("red"), plain("blue"), plain("green")])
        assert model.asked == [3]

    @pytest.mark.parametrize("answer", [
        np.zeros((2, 3), np.float32),
        np.zeros((1, 2), np.float32),
        np.zeros((1, 3), np.float64),
        np.full((1, 3), 1.5, np.float32),
        np.full((1, 3), np.nan, np.float32),
        None,
        ZeroDivisionError("one\ntwo"),
    ])  # fmt: skip
    def test_takes_only_what_the_protocol_promises(self, says, answer: Any) -> None:
        says("classifier", answer)
        with pytest.raises(ModelError, match="classifier 'fake'") as caught:
            Label(FAKE).run([plain("red")])
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("options", [
        {"top_k": 0}, {"top_k": True}, {"top_k": 2.5}, {"min_score": 1.1}, {"min_score": -0.1},
        {"min_score": float("nan")}, {"model": {"family": "siglip"}},
    ])  # fmt: skip
    def test_options_are_checked(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            TypeAdapter(Label).validate_python({"model": {"family": "fake"}, **options})


class TestZeroShot:
    LABELS = (*COLOURS, "purple")

    def test_the_label_that_names_the_colour(self) -> None:
        samples = [Sample.from_image(n, picture(c, seed=i)) for i, (n, c) in enumerate(COLOURS.items())]
        for sample in Pipeline((Embed(FAKE), ZeroShot(self.LABELS, FAKE))).run(samples):
            [labels] = required(sample.labelings)
            assert labels[0].label == sample.sample_id
            assert len(labels) == 4
            assert sum(each.score for each in labels) == pytest.approx(1)

    def test_scores_are_the_softmax_of_the_cosines(self) -> None:
        encoder = load_encoder(FAKE)
        image = picture((90, 60, 120), seed=1)
        texts = encoder.encode_text(["red", "blue"])  # type: ignore[attr-defined]
        cosine = (texts.astype(np.float64) @ encoder.encode([image])[0]) / 0.5
        expected = np.exp(cosine) / np.exp(cosine).sum()
        step = ZeroShot(("red", "blue"), FAKE, ("{}",), 0.5)
        [sample] = Pipeline((Embed(FAKE), step)).run([Sample.from_image("photo", image)])
        scores = {each.label: each.score for each in required(sample.labelings)[0]}
        assert [scores["red"], scores["blue"]] == pytest.approx(expected.tolist())

    def test_a_label_with_a_comma_is_one_label(self) -> None:
        [sample] = Pipeline((Embed(FAKE), ZeroShot(("red, or so",), FAKE))).run([plain("red")])
        assert required(sample.labelings) == ((LabelScore("red, or so", 1.0),),)

    @pytest.mark.parametrize(("options", "says"), [
        ({"labels": []}, "labels"),
        ({"labels": [""]}, "labels"),
        ({"labels": ["a", "b", "a"]}, "label 'a' is there twice"),
        ({"templates": ["no place"]}, "templates"),
        ({"temperature": 0.0}, "temperature"),
        ({"encoder": {"family": "dinov2"}}, "takes no texts"),
    ])  # fmt: skip
    def test_options_are_checked(self, options: dict[str, Any], says: str) -> None:
        with pytest.raises(ValidationError, match=says):
            TypeAdapter(ZeroShot).validate_python({"labels": ["a"], "encoder": {"family": "fake"}, **options})

    def test_vectors_of_another_encoder(self) -> None:
        line = (Embed(ModelSpec("fake", "other")), ZeroShot(("a",), FAKE))
        with pytest.raises(EncoderMismatchError, match="zero_shot has encoder fake"):
            list(Pipeline(line).run([plain("red")]))

    def test_settings_take_the_encoder_of_embed(self) -> None:
        given = ({"embed": {"encoder": {"family": "fake"}}}, {"zero_shot": {"labels": ["a"]}})
        assert PipelineConfig(pipeline=given).steps()[1] == ZeroShot(("a",), FAKE)
        with pytest.raises(ConfigError, match="zero_shot.encoder"):
            PipelineConfig(pipeline=given[1:]).steps()


class TestCaption:
    def test_a_text_per_region(self) -> None:
        image = Image.new("RGB", (20, 10))
        image.paste((255, 255, 255), (5, 0, 10, 10))
        [found] = Pipeline((Detect(FAKE), Caption(FAKE))).run([Sample.from_image("photo", image)])
        assert found.captions == ("a picture of 20 by 10 pixels", "a picture of 5 by 10 pixels")

    def test_prompt_length_and_white_space(self, says) -> None:
        [found] = Caption(FAKE, prompt="a  sketch\nof", max_length=3).run([plain("red")])
        assert found.captions == ("a sketch of 8 by 8",)
        says("captioner", ["  one \n\t two  "])
        assert Caption(FAKE).run([plain("red")])[0].captions == ("one two",)

    def test_as_many_at_once_as_batch_size_says(self, says) -> None:
        model = says("captioner", lambda images: [str(image.width) for image in images])
        found = Caption(FAKE, batch_size=2).run([plain("red", (n, 4)) for n in range(1, 6)])
        assert model.asked == [2, 2, 1]
        assert [each.captions for each in found] == [("1",), ("2",), ("3",), ("4",), ("5",)]

    @pytest.mark.parametrize("answer", [[], ["a", "b"], [None], ValueError("one\ntwo")])
    def test_takes_only_what_the_protocol_promises(self, says, answer: Any) -> None:
        says("captioner", answer)
        with pytest.raises(ModelError, match="captioner 'fake'") as caught:
            Caption(FAKE).run([plain("red")])
        assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("options", [
        {"max_length": 0}, {"max_length": 1025}, {"max_length": True}, {"max_length": 2.0}, {"batch_size": 0},
        {"prompt": ""}, {"prompt": " "}, {"model": {"family": "qwen-vl"}},
    ])  # fmt: skip
    def test_options_are_checked(self, options: dict[str, Any]) -> None:
        assert Caption(FAKE).max_length == 50
        with pytest.raises(ValidationError):
            TypeAdapter(Caption).validate_python({"model": {"family": "fake"}, **options})


def test_a_photo_without_what_was_asked_for_is_left_alone() -> None:
    line = (Detect(FAKE), Focus("person"), Label(FAKE), Caption(FAKE))
    dark, bright = Pipeline(line).run([plain("black"), plain("white")])
    assert (dark.labelings, dark.captions) == (None, None)
    assert bright.captions == ("a picture of 8 by 8 pixels",)
