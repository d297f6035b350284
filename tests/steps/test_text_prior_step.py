"""The names of the labels in the decision, by an encoder whose texts are the colours they name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from lmm_classifier import HybridClassifier, PipelineConfig, registry
from lmm_classifier.api.build_index import build_index
from lmm_classifier.api.classification import Classification
from lmm_classifier.errors import EncoderMismatchError, ModelError
from lmm_classifier.models.fake import FakeEncoder
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.steps.text_prior import TextPrior
from lmm_classifier.types import FloatArray
from synthetic import COLOURS, picture, write_corpus

FAKE = ModelSpec("fake")
PURPLE = (128, 0, 128)  # as CSS has it
LABELS = (*COLOURS, "purple")


@pytest.fixture(scope="module")
def index(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text_prior")
    build_index(write_corpus(folder / "corpus"), folder / "index", encoder=FAKE)
    return folder / "index"


def classifier(index: Path, text_prior: dict[str, Any] | None, **open_set: Any) -> HybridClassifier:
    cuts = {"confidence_threshold": 0.6, "open_set_threshold": 0.35, "calibration": None}
    encoder = {"family": "fake"}
    text_prior = text_prior and {"encoder": encoder, "index": index, "labels": LABELS, **text_prior}
    steps = (
        {"embed": {"encoder": encoder}},
        {"retrieve": {"index": index, "k": 10, "labels": LABELS}},
        {"vote": {}},
        *([{"text_prior": text_prior}] if text_prior else []),
        {"open_set": cuts | open_set},
        {"rerank": {"model": {"family": "fake", "weights": "purple"}, "max_candidates": 2}},
    )
    return HybridClassifier(PipelineConfig(pipeline=steps))


def untimed(answers: list[Classification]) -> list[Classification]:
    return [replace(answer, timings={}) for answer in answers]


def refuse(self: FakeEncoder, texts: Sequence[str]) -> FloatArray:
    raise AssertionError("the text tower was opened")


def test_without_weight_it_changes_and_opens_nothing(index: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeEncoder, "encode_text", refuse)
    images = [picture(colour, seed=40 + i) for i, colour in enumerate((*COLOURS.values(), PURPLE))]
    off = classifier(index, {"weight": 0.0, "templates": ("unseen {}",)})
    off.load()
    without = classifier(index, None)
    assert untimed(off.classify_batch(images)) == untimed(without.classify_batch(images))
    on = classifier(index, {"weight": 0.1, "templates": ("unseen {}",)})
    with pytest.raises(AssertionError, match="text tower"):
        on.load()


def test_a_label_without_images_wins_by_its_name(index: Path) -> None:
    photo = picture(PURPLE, seed=1)
    without = classifier(index, None).classify(photo)
    assert "purple" not in {c.label for c in without.candidates}
    answers = [classifier(index, {"weight": w}).classify(photo) for w in (0.1, 0.3, 0.5, 0.7, 0.9)]
    evidence = [{c.label: c.score for c in answer.candidates}["purple"] for answer in answers]
    assert evidence == sorted(evidence)
    # The fake's text is the very picture of the colour, so its probability is nearly 1.
    assert evidence == pytest.approx([0.1, 0.3, 0.5, 0.7, 0.9], abs=0.01)
    last = answers[-1]
    assert (last.label, last.status, last.stage) == ("purple", "known", "open_set")
    assert last.candidates[0].label == "purple"
    assert {neighbour.label for neighbour in last.neighbours} <= COLOURS.keys()
    assert last.closeness >= without.closeness
    assert last.to_dict()["label"] == "purple"


def test_it_may_be_the_rerankers_choice(index: Path) -> None:
    one = classifier(index, {"weight": 0.5}, confidence_threshold=1.0)
    answer = one.classify(picture(PURPLE, seed=1))
    assert (answer.label, answer.stage, answer.used_reranker) == ("purple", "rerank", True)


def test_labels_with_images_stay_as_near_as_their_images(index: Path) -> None:
    photos = [picture(colour, seed=9) for colour in COLOURS.values()]
    without = classifier(index, None).classify_batch(photos)
    texts = classifier(index, {"weight": 0.8, "labels": None}).classify_batch(photos)
    assert [a.label for a in texts] == [*COLOURS]
    assert [a.closeness for a in texts] == pytest.approx([a.closeness for a in without], abs=1e-5)
    far = picture(PURPLE, seed=1)
    strict = {"confidence_threshold": 0.999, "open_set_threshold": 0.99}
    assert classifier(index, {"weight": 0.8, "labels": None}, **strict).classify(far).label == "unknown"


def test_texts_and_photos_must_be_of_one_encoder(index: Path) -> None:
    other = classifier(index, {"weight": 0.5, "encoder": {"family": "fake", "weights": "other"}})
    with pytest.raises(EncoderMismatchError, match="text_prior has encoder fake other .*the same encoder"):
        other.classify(picture(PURPLE))


@pytest.mark.parametrize("family", ["dinov2", "dinov2-timm", "dinov3", "dinov3-patch", "onnx", "descriptor"])
def test_an_encoder_without_texts_is_refused_where_it_would_be_asked(family: str) -> None:
    message = f"encoder '{family}' takes no texts; use siglip or clip"
    with pytest.raises(ValidationError, match=message):
        TextPrior(encoder=ModelSpec(family), index=Path("x"), weight=0.1)
    assert TextPrior(encoder=ModelSpec(family), index=Path("x")).weight == 0


class Blind(FakeEncoder):
    """An encoder of another package, which its settings cannot know to take no texts."""

    encode_text = None  # type: ignore[assignment]


def test_one_of_another_package_is_asked_when_it_is_opened(
    index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(
        registry.BUILTINS["encoder"], "blind", registry.Entry(f"{__name__}:Blind", takes_texts=True)
    )
    step = TextPrior(encoder=ModelSpec("blind"), index=index, weight=0.1)
    with pytest.raises(ModelError, match="encoder 'blind' takes no texts; use siglip or clip"):
        step.load()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": 1.1}, "less than or equal to 1"),
        ({"weight": -0.1}, "greater than or equal to 0"),
        ({"temperature": 0.0}, "greater than 0"),
        ({"labels": ()}, "at least 1 item"),
        ({"templates": ()}, "at least 1 item"),
        ({"templates": ("a photo",)}, "should match pattern"),
        ({"encoder": ModelSpec("sigilp")}, "did you mean 'siglip'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TextPrior(**{"encoder": FAKE, "index": Path("x"), **options})
