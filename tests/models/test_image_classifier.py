"""The classifier against transformers, called directly on the same random checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, ConvNextForImageClassification

from lmm_classifier.errors import ModelError, ModelUnavailableError
from lmm_classifier.models.classification import classified, load_classifier
from lmm_classifier.models.spec import ModelSpec
from refusals import refused
from tiny_models import write_siglip
from tiny_vision import CLASSES, names, write_convnext, write_yolos

Noise = Callable[..., Image.Image]
SIZES = [(60, 40), (30, 90), (32, 32), (1, 1), (640, 480), (15, 240)]


def spec(weights: object, **options: Any) -> ModelSpec:
    return ModelSpec("image-classifier", str(weights), **{"dtype": "float32", **options})


def logits(weights: str, image: Image.Image) -> torch.Tensor:
    inputs = AutoImageProcessor.from_pretrained(weights)(images=image, return_tensors="pt")
    with torch.no_grad():
        return ConvNextForImageClassification.from_pretrained(weights).eval()(**inputs).logits


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_convnext(tmp_path_factory.mktemp("tiny") / "convnext")


@pytest.mark.parametrize("size", SIZES)
def test_it_is_the_softmax_of_transformers(folder: str, size: tuple[int, int], noise: Noise) -> None:
    rows = classified(spec(folder), [noise(*size)])
    np.testing.assert_array_equal(rows, logits(folder, noise(*size)).softmax(-1).numpy())
    assert load_classifier(spec(folder)).names == CLASSES


@pytest.mark.parametrize("config", [
    {"problem_type": "multi_label_classification"},
    names(("burning",)),
])  # fmt: skip
def test_several_classes_at_once_are_a_sigmoid_each(tmp_path: Path, config: Any, noise: Noise) -> None:
    folder = write_convnext(tmp_path / "model", **config)
    rows = classified(spec(folder), [noise(60, 40)])
    np.testing.assert_array_equal(rows, logits(folder, noise(60, 40)).sigmoid().numpy())


def test_a_sliver_is_seen_as_its_centre(folder: str, noise: Noise) -> None:
    """Whole, it would become 36 x 72,000 px before the crop takes 32 x 32 of them."""
    rows = classified(spec(folder), [noise(1, 2000), noise(2000, 1)])
    for row, centre in zip(
        rows, [noise(1, 2000).crop((0, 992, 1, 1008)), noise(2000, 1).crop((992, 0, 1008, 1))], strict=True
    ):
        np.testing.assert_allclose(row, logits(folder, centre).softmax(-1).numpy()[0], atol=2e-6)


def test_coarse_arithmetic_gives_nearly_the_same(folder: str, noise: Noise) -> None:
    fine, coarse = (
        classified(spec(folder, dtype=dtype), [noise(60, 40)]) for dtype in ("float32", "bfloat16")
    )
    assert coarse.dtype == np.float32
    np.testing.assert_allclose(coarse, fine, atol=0.05)
    assert not np.array_equal(coarse, fine)


class TestRefuses:
    def test_regression(self, tmp_path: Path) -> None:
        assert refused(
            load_classifier,
            spec(write_convnext(tmp_path / "model", problem_type="regression")),
            "trained for regression",
        )

    def test_a_checkpoint_of_another_kind(self, tmp_path: Path) -> None:
        assert refused(
            load_classifier, spec(write_yolos(tmp_path / "yolos")), "cannot be opened as 'image-classifier'"
        )
        assert refused(
            load_classifier, spec(write_siglip(tmp_path / "siglip")), "lacks .* weights of its architecture"
        )

    @pytest.mark.parametrize("gone", ["model.safetensors", "config.json", "preprocessor_config.json"])
    def test_a_missing_file(self, gone: str, tmp_path: Path) -> None:
        folder = write_convnext(tmp_path / "model")
        (Path(folder) / gone).unlink()
        assert refused(load_classifier, spec(folder), "cannot be opened as 'image-classifier'")

    def test_classes_without_names(self, tmp_path: Path) -> None:
        folder = write_convnext(tmp_path / "model")
        config = json.loads((Path(folder) / "config.json").read_text())
        config["id2label"] = {"1": "a", "2": "b", "3": "c", "4": "d", "5": "e"}
        (Path(folder) / "config.json").write_text(json.dumps(config))
        assert refused(load_classifier, spec(folder), "no name for each of its 5 classes")

    def test_what_is_not_there(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(ModelUnavailableError, match="'facebook/convnext-tiny-224' is neither on this"):
            load_classifier(ModelSpec("image-classifier"))
        with pytest.raises(ModelError, match="not compiled"):
            load_classifier(ModelSpec("image-classifier", compile=True))


def test_opening_and_asking_says_nothing(folder: str, noise: Noise, said: Callable[[], str]) -> None:
    said()  # to write it is not silent
    classified(spec(folder), [noise(20, 20)])
    assert said() == ""
