"""Another package's classifier, a real MobileNet v2, in the step `label`; needs LMM_CLASSIFIER_REALDATA."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import EntryPoint
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from lmm_classifier import registry
from lmm_classifier.api.vision import labels
from lmm_classifier.corpus.images import open_image
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.pipeline import Pipeline
from lmm_classifier.steps.label import Label
from lmm_classifier.types import FloatArray, Sample, required

SIDE, CROP = 224, 0.875
MODEL, NAMES = "models/mobilenet_v2_imagenet.onnx", "models/imagenet_labels.txt"


class MobileNet:
    """uint8 (1, 224, 224, 3) to uint8 (1, 1001): a softmax in steps of 1/255, row 0 for the background."""

    def __init__(self, spec: ModelSpec) -> None:
        root = Path(spec.weights)
        self.names = tuple((root / NAMES).read_text("utf-8").splitlines())
        self._session = onnxruntime.InferenceSession(str(root / MODEL), providers=["CPUExecutionProvider"])
        self._input = self._session.get_inputs()[0].name

    def probabilities(self, images: Sequence[Image.Image]) -> FloatArray:
        rows = [self._session.run(None, {self._input: self._pixels(image)})[0] for image in images]
        return np.asarray(rows, np.float32).reshape(len(images), len(self.names)) / 255

    def _pixels(self, image: Image.Image) -> np.ndarray:
        side = CROP * min(image.size)
        x, y = (image.width - side) / 2, (image.height - side) / 2
        box = (x, y, x + side, y + side)
        return np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR, box=box))[None]


@pytest.fixture
def mobilenet(monkeypatch: pytest.MonkeyPatch, realdata: Path) -> ModelSpec:
    """What is left of an installed package once its entry points have been read."""
    entry = EntryPoint("mobilenet", f"{__name__}:MobileNet", "lmm_classifier.classifiers")

    def entry_points(group: str, name: str | None = None) -> list[EntryPoint]:
        return [entry] if group == entry.group and name in (None, entry.name) else []

    monkeypatch.setattr(registry, "entry_points", entry_points)
    return ModelSpec("mobilenet", str(realdata))


def test_it_finds_daisies_among_a_thousand_things(mobilenet: ModelSpec, realdata: Path) -> None:
    photos = sorted((realdata / "data/flowers12").glob("*/daisy/*.jpg"))
    samples = [Sample.from_image(photo.name, open_image(photo)) for photo in photos]
    found = [required(s.labelings)[0] for s in Pipeline((Label(mobilenet),)).run(samples)]
    assert all(len(five) <= 5 for five in found)
    first = np.mean([five[0].label == "daisy" for five in found])
    top = np.mean(["daisy" in {each.label for each in five} for five in found])
    assert len(photos) == 80
    assert top > 0.98  # measured 1.0
    assert first > 0.95  # measured .9875


def test_its_synonyms_are_told_apart_and_keep_one_score(mobilenet: ModelSpec, realdata: Path) -> None:
    photo = min((realdata / "data/flowers12/test/daisy").glob("*.jpg"))
    [sample] = Label(mobilenet, top_k=None).run([Sample.from_image("photo", open_image(photo))])
    [everything] = required(sample.labelings)
    assert len(everything) == 1001
    by_label = {each.label: each for each in everything}
    assert by_label["tench"].synonyms == ("Tinca tinca",)
    assert by_label["daisy"].synonyms == ()
    assert labels(photo, model=mobilenet) == ["daisy"]
    assert sum(each.score for each in everything) == pytest.approx(1, abs=0.1)  # in steps of 1/255
