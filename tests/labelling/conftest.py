from __future__ import annotations

from pathlib import Path

import pytest

from labelled import write_settings
from lmm_classifier.classifier import HybridClassifier
from lmm_classifier.config import PipelineConfig


@pytest.fixture
def config(tmp_path: Path) -> Path:
    """Settings of a classifier that tells red from green from blue."""
    return write_settings(tmp_path)


@pytest.fixture
def classifier(config: Path) -> HybridClassifier:
    return HybridClassifier(PipelineConfig.from_yaml(config))
