"""How a battery opens each registered model of a kind: with its tiny checkpoint, and anew."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lmm_classifier import registry
from lmm_classifier.models import loading
from lmm_classifier.models.spec import ModelSpec
from tiny_vision import WRITERS


def opener(
    kind: registry.Kind, family: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[], Any]:
    """A function that opens the model of a family anew; its tiny checkpoint is written once."""
    weights = "shipped:qwen2-vl-digits" if family == "image-text-to-text" else ""
    if family in WRITERS:
        place = folder / family
        weights = str(place) if place.exists() else WRITERS[family](place)

    def open_again() -> Any:
        loading.reset()
        return loading.open_model(kind, ModelSpec(family, weights))

    return open_again


def photos() -> list[Image.Image]:
    """Of several sizes and contents; none two alike."""
    random = np.random.default_rng(0)
    sizes = [(64, 48), (48, 64), (20, 20), (7, 300), (1, 1), (33, 31)]
    return [Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8)) for w, h in sizes]
