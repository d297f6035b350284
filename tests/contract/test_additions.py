"""What it takes to add something of our own: one file, and one line in a table."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from lmm_classifier import ConfigError, HybridClassifier, PipelineConfig, build_index, registry
from lmm_classifier.models.loading import load_encoder
from lmm_classifier.models.runtime.checkpoint_cache import defaults
from lmm_classifier.models.spec import ModelSpec
from synthetic import COLOURS, picture, write_corpus

FILE = '''
import numpy as np

from lmm_classifier.types import EncoderContract


class MeanColour:
    """The mean colour of a photo, as a unit vector."""

    input_size = 8

    def __init__(self, spec):
        self.contract = EncoderContract("mean-colour", spec.weights, "", "", "{}", 3, "float32")

    def encode(self, images):
        means = [np.asarray(image.convert("RGB"), np.float32).mean((0, 1)) + 1 for image in images]
        vectors = np.asarray(means, np.float32).reshape(-1, 3)
        return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
'''
LINE = registry.Entry("mean_colour:MeanColour", weights="acme/mean-colour", licence="MIT")


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModelSpec:
    (tmp_path / "mean_colour.py").write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mean_colour", raising=False)
    monkeypatch.setitem(registry.BUILTINS["encoder"], "mean-colour", LINE)
    return ModelSpec("mean-colour")


def test_an_encoder_is_one_file_and_one_line(added: ModelSpec, tmp_path: Path) -> None:
    """Index, settings, the refusal of texts and the list of checkpoints know it at once."""
    build_index(write_corpus(tmp_path / "corpus"), tmp_path / "index", encoder=added)
    settings = {"encoder": {"family": "mean-colour"}, "rerank": {"enabled": False}}
    retrieval = {"index_path": tmp_path / "index", "confidence_threshold": 0.5, "open_set_threshold": 0.1}
    classifier = HybridClassifier(PipelineConfig(**settings, retrieval=retrieval))
    assert classifier.classify(picture(COLOURS["red"], seed=99)).label == "red"
    assert load_encoder(added).contract.dim == 3
    assert ("mean-colour", "acme/mean-colour", "MIT") in {
        (each.family, each.hub_id, each.licence) for each in defaults(["embed"])
    }
    with pytest.raises(ConfigError, match="encoder 'mean-colour' takes no texts; use siglip or clip"):
        PipelineConfig(**settings, retrieval={**retrieval, "text_weight": 0.3}).build()


def test_settings_offer_its_name_to_who_mistypes_it(added: ModelSpec) -> None:
    with pytest.raises(ConfigError, match="did you mean 'mean-colour'"):
        PipelineConfig(pipeline=[{"embed": {"encoder": {"family": "mean-color"}}}]).build()
