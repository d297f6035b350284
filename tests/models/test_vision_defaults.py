"""`vision` with the checkpoints it means by default, here tiny ones under their names in the hub's cache.

Against transformers, called directly.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from transformers import (
    AutoImageProcessor,
    BitImageProcessor,
    ConvNextForImageClassification,
    ConvNextImageProcessor,
    Dinov2Config,
    Dinov2Model,
)

from hub_cache import files_in, write_cached
from lmm_classifier.api.vision import classify_image, embed, labels, similarity
from lmm_classifier.config.pipeline import PipelineConfig, make_step
from lmm_classifier.errors import ConfigError
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.steps.label import Label
from lmm_classifier.types import Sample, required
from tiny_models import randomised
from tiny_vision import names, write_convnext

Noise = Callable[..., Image.Image]
Put = Callable[[str, str], None]
SEVEN = ("tench, Tinca tinca", "goldfish, Carassius auratus", "daisy", "cock", "hen", "kite", "cup")
CONVNEXT, DINO = "facebook/convnext-tiny-224", "facebook/dinov2-base"
FLOAT32 = {"dtype": "float32"}


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Put:
    """Puts a folder into the hub's cache under the name of a repository."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def put(hub_id: str, folder: str) -> None:
        write_cached(tmp_path / "hub", hub_id, files_in(folder))

    return put


@pytest.fixture
def convnext(tmp_path: Path, put: Put) -> str:
    folder = write_convnext(tmp_path / "convnext", **names(SEVEN))
    put(CONVNEXT, folder)
    return folder


def probabilities(folder: str, image: Image.Image) -> torch.Tensor:
    inputs = AutoImageProcessor.from_pretrained(folder)(images=image, return_tensors="pt")
    with torch.no_grad():
        return ConvNextForImageClassification.from_pretrained(folder).eval()(**inputs).logits.softmax(-1)[0]


def test_classify_gives_the_five_likeliest_by_a_softmax(convnext: str, noise: Noise) -> None:
    image = noise(60, 40)
    expected = torch.topk(probabilities(convnext, image), 5)
    found = classify_image(image, model=ModelSpec("image-classifier", **FLOAT32))
    assert [each.score for each in found] == pytest.approx(expected.values.tolist())
    assert [", ".join((each.label, *each.synonyms)) for each in found] == [
        SEVEN[i] for i in expected.indices.tolist()
    ]
    assert len(classify_image(image)) == 5  # by default
    assert len(classify_image(image, top_k=None)) == 7


def test_labels_are_those_that_reach_the_minimum_with_their_synonyms(convnext: str, noise: Noise) -> None:
    image = noise(60, 40)
    scores = probabilities(convnext, image)
    for least in (0.5, 0.12):
        passing = [int(i) for i in scores.argsort(descending=True) if scores[i] >= least]
        spelt = [name for i in passing for name in SEVEN[i].split(", ")]
        assert labels(image, least, ModelSpec("image-classifier", **FLOAT32)) == spelt


def test_a_lower_minimum_gives_more_labels_and_five_are_no_limit(convnext: str, noise: Noise) -> None:
    image = noise(60, 40)
    counts = [len(labels(image, least)) for least in (1.0, 0.5, 0.2, 0.1, 0.0)]
    assert counts == sorted(counts)
    assert counts[-1] == 9  # the names of all seven classes, two of which have two


def write_dino(folder: Path, width: int) -> str:
    shape = {"hidden_size": width, "num_hidden_layers": 1, "num_attention_heads": 4, "mlp_ratio": 1}
    model = Dinov2Model(Dinov2Config(**shape, image_size=28, patch_size=14))
    randomised(model, 0.1).save_pretrained(folder)
    size, crop = {"shortest_edge": 32}, {"height": 28, "width": 28}
    BitImageProcessor(size=size, crop_size=crop, do_center_crop=True).save_pretrained(folder)
    return str(folder)


def test_the_vector_is_the_class_token_normalised(tmp_path: Path, put: Put, noise: Noise) -> None:
    """768 numbers, of length 1, as decided: the original's were as the model gives them."""
    folder = write_dino(tmp_path / "base", 768)
    put(DINO, folder)
    put("facebook/dinov2-large", write_dino(tmp_path / "large", 1024))
    image = noise(60, 40)
    inputs = AutoImageProcessor.from_pretrained(folder)(images=image, return_tensors="pt")
    with torch.no_grad():
        pooled = Dinov2Model.from_pretrained(folder).eval()(**inputs).pooler_output[0].numpy()
    assert np.linalg.norm(pooled) > 2
    vector = embed(image, ModelSpec("dinov2", **FLOAT32))
    assert (vector.shape, vector.dtype) == ((768,), np.float32)
    np.testing.assert_allclose(vector, pooled / np.linalg.norm(pooled), atol=2e-6)
    assert embed(image).shape == (768,)  # by default
    assert embed(image, ModelSpec("dinov2", "facebook/dinov2-large")).shape == (1024,)


def test_similarity_is_the_cosine_of_two_vectors(tmp_path: Path, put: Put, noise: Noise) -> None:
    put(DINO, write_dino(tmp_path / "base", 32))
    a, b = embed(noise(60, 40)), embed(noise(60, 40, seed=1))
    expected = torch.nn.functional.cosine_similarity(torch.tensor(a), torch.tensor(b), dim=0, eps=1e-12)
    assert similarity(a, b) == pytest.approx(float(expected), abs=1e-6)
    assert similarity(7 * a, 0.1 * a) == pytest.approx(1)
    assert similarity(a, np.zeros_like(a)) == 0


class TestModelSettings:
    """Which model, where and how it computes is one setting; its own preprocessing comes with it."""

    def test_the_precision_of_a_model_and_the_batch_size_are_as_set(
        self, convnext: str, noise: Noise
    ) -> None:
        sample = Sample.from_image("photo", noise(60, 40))
        scores = {}
        for dtype in ("float32", "bfloat16"):
            model = {"family": "image-classifier", "weights": convnext, "device": "cpu", "dtype": dtype}
            config = PipelineConfig(pipeline=({"label": {"model": model, "top_k": None}},), batch_size=10)
            line = config.build()
            assert line.batch_size == 10
            [found] = line.run([sample])
            scores[dtype] = {each.label: each.score for each in required(found.labelings)[0]}
        exact = {
            n.split(", ")[0]: float(p)
            for n, p in zip(SEVEN, probabilities(convnext, noise(60, 40)), strict=True)
        }
        assert scores["float32"] == pytest.approx(exact)
        assert scores["bfloat16"] == pytest.approx(exact, abs=0.05)
        assert scores["bfloat16"] != scores["float32"]

    def test_no_other_preprocessing_can_be_named(self) -> None:
        model: dict[str, Any] = {"family": "image-classifier", "featurizer": "some/other"}
        with pytest.raises(
            ConfigError, match=r"label\.model\.featurizer: unknown key; known: family, weights"
        ):
            make_step("label", {"model": model})

    def test_the_preprocessing_is_the_checkpoints(self, tmp_path: Path, noise: Noise) -> None:
        """The same weights with another size of the input are another answer: that of transformers."""
        image, answers = noise(60, 40), []
        for side in (32, 64):
            folder = write_convnext(tmp_path / str(side), **names(SEVEN))
            ConvNextImageProcessor(size={"shortest_edge": side}).save_pretrained(folder)
            step = Label(ModelSpec("image-classifier", folder, **FLOAT32), top_k=None)
            [found] = step.run([Sample.from_image("photo", image)])
            scores = [each.score for each in required(found.labelings)[0]]
            expected = probabilities(folder, image).sort(descending=True).values.tolist()
            assert scores == pytest.approx(expected)
            answers.append(scores)
        assert answers[0] != pytest.approx(answers[1])
