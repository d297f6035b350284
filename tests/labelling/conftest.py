from __future__ import annotations

from pathlib import Path

import pytest

from flower_splits import Flowers, FlowerSplit, embed_flowers, flower_split
from labelled import write_settings
from lmm_classifier.api.hybrid_classifier import HybridClassifier
from lmm_classifier.config.pipeline import PipelineConfig


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Settings of a classifier that tells red from green from blue."""
    return write_settings(tmp_path)


@pytest.fixture
def classifier(config: Path) -> HybridClassifier:
    return HybridClassifier(PipelineConfig.from_yaml(config))


@pytest.fixture(scope="session")
def flowers(realdata: Path, tmp_path_factory: pytest.TempPathFactory) -> Flowers:
    return embed_flowers(realdata, tmp_path_factory.mktemp("flowers"))


@pytest.fixture(scope="session")
def one_split(realdata: Path, tmp_path_factory: pytest.TempPathFactory) -> FlowerSplit:
    """Smaller, for the tests that always run: of each species 30 training photos instead of 60."""
    return flower_split(embed_flowers(realdata, tmp_path_factory.mktemp("few"), 30), 0)
