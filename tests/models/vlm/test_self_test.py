from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from lmm_classifier import registry
from lmm_classifier.models.base import Question
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.models.vlm.self_test import self_test_fault
from lmm_classifier.models.vlm.strategies import PromptStrategy, default_template
from lmm_classifier.types import FloatArray

TINY = "shipped:qwen2-vl-digits"


def strategy(mode: str = "listwise", scoring: str = "likelihood") -> PromptStrategy:
    return PromptStrategy(mode, scoring, default_template(mode, scoring))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("way", "dtype"),
    [
        (strategy(), "float32"),
        (strategy(scoring="normalised"), "float32"),
        (strategy(scoring="letter"), "bfloat16"),
        (strategy("pointwise"), "float32"),
        (strategy("pairwise"), "bfloat16"),
    ],
)
def test_the_shipped_model_passes_however_it_is_asked(way: PromptStrategy, dtype: str) -> None:
    assert self_test_fault(ModelSpec("qwen-vl", TINY, dtype=dtype), way, 8, None) is None  # type: ignore[arg-type]


class Moody:
    """Says something else of a question that comes with others."""

    def __init__(self, spec: ModelSpec) -> None:
        self._moody = spec.weights == "moody"

    def log_likelihoods(self, questions: list[Question], batch_size: int) -> list[FloatArray]:
        share = 0.6 if self._moody and len(questions) > 1 else 0.5
        return [
            np.log(
                np.asarray([share, *[(1 - share) / (len(q.options) - 1)] * (len(q.options) - 1)], np.float32)
            )
            for q in questions
        ]


@pytest.fixture(autouse=True)
def moody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(registry.BUILTINS["chooser"], "moody", registry.Entry(f"{__name__}:Moody"))


def test_a_chooser_whose_answers_depend_on_the_batch_fails() -> None:
    assert self_test_fault(ModelSpec("moody", "steady"), strategy(), 8, None) is None
    fault = self_test_fault(ModelSpec("moody", "moody"), strategy(), 8, None)
    assert fault == (
        "moody moody fails its self-test: probabilities of the same answers differ by 0.100 one by one, more "
        "than 0.05; use another dtype or version, or set self_test: false"
    )


def test_a_twin_that_says_something_else_is_noticed(
    qwen_folders: dict[str, Path], edited: Callable[[Path], Path]
) -> None:
    folder = qwen_folders["qwen2_vl"]
    spec = ModelSpec("qwen-vl", str(folder), dtype="float32")
    assert self_test_fault(spec, strategy(), 8, replace(spec, weights=f"{folder}/.")) is None
    copy = edited(folder)
    weights = load_file(copy / "model.safetensors")
    torch.manual_seed(0)
    weights = {name: values + 2 * torch.randn_like(values) for name, values in weights.items()}
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    fault = self_test_fault(spec, strategy(scoring="letter"), 8, replace(spec, weights=str(copy)))
    assert fault is not None
    assert f"by {copy}, more than 0.05" in fault
