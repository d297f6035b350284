"""Models that are kept on disk in part: their answers are those of the whole model."""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from clock import from_now
from lmm_classifier.errors import OutOfTimeError
from lmm_classifier.models import loading
from lmm_classifier.models.base import Chooser, Question
from lmm_classifier.models.captioning import captioned
from lmm_classifier.models.loading import load_chooser
from lmm_classifier.models.runtime.memory import weight_bytes
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.models.vlm import prefix_sharing
from naive_qwen import OPTIONS, PROMPT
from refusals import refused

Noise = Callable[..., Image.Image]


@pytest.fixture
def questions(noise: Noise) -> list[Question]:
    exemplars = (("A:", noise(60, 60, 3)), ("B:", noise(80, 40, 4)))
    return [
        Question(noise(120, 90, 1), PROMPT, OPTIONS),
        Question(noise(300, 40, 2), "Which?", ("rose", "tulip")),
        Question(noise(90, 90, 5), "Which?", ("a", "b"), "letter", exemplars),
    ]


def on_disk(folder: Path, offload: Path, share: float = 0.7, **options: Any) -> ModelSpec:
    """A spec by which that share of the weights, at most, is in memory."""
    size = (folder / "model.safetensors").stat().st_size
    return ModelSpec(
        "qwen-vl",
        str(folder),
        dtype="float32",
        device_map="auto",
        max_memory={"cpu": int(size * share)},
        offload_folder=offload,
        **options,
    )


class TestOnDisk:
    """What does not fit into the memory that is allowed."""

    def test_the_answers_are_those_of_the_whole_model(
        self, folder: Path, chooser: Chooser, questions: list[Question], tmp_path: Path
    ) -> None:
        spread: Any = load_chooser(on_disk(folder, tmp_path / "off"))
        assert set(spread._model.hf_device_map.values()) == {"cpu", "disk"}
        expected = chooser.log_likelihoods(questions, 8)
        for ours, whole in zip(spread.log_likelihoods(questions, 8), expected, strict=True):
            np.testing.assert_allclose(ours, whole, atol=1e-5)
        plain = spread.plain_log_likelihoods(questions[0])
        np.testing.assert_allclose(plain, expected[0], atol=1e-4, rtol=1e-6)

    def test_a_bound_that_is_large_enough_changes_nothing(
        self, folder: Path, chooser: Chooser, questions: list[Question]
    ) -> None:
        bounded: Any = load_chooser(
            ModelSpec("qwen-vl", str(folder), dtype="float32", max_memory={"cpu": "1GiB"})
        )
        assert weight_bytes(bounded) == weight_bytes(chooser)
        expected = chooser.log_likelihoods(questions, 8)
        for ours, whole in zip(bounded.log_likelihoods(questions, 8), expected, strict=True):
            np.testing.assert_allclose(ours, whole, atol=1e-5)

    def test_captions_are_those_of_the_whole_model(self, folder: Path, noise: Noise, tmp_path: Path) -> None:
        images = [noise(60, 40, 1), noise(200, 90, 2)]
        spread = on_disk(folder, tmp_path / "off")
        specs = [
            ModelSpec("image-text-to-text", str(folder), dtype="float32"),
            replace(spread, family="image-text-to-text"),
        ]
        whole, ours = (captioned(spec, images, "Which label fits?", 8, 2) for spec in specs)
        assert ours == whole

    def test_counts_for_nothing_in_the_memory_budget(
        self, folder: Path, chooser: Chooser, tmp_path: Path
    ) -> None:
        assert 0 < weight_bytes(load_chooser(on_disk(folder, tmp_path / "off"))) < 0.7 * weight_bytes(chooser)

    def test_its_files_are_gone_with_the_model_and_apart_from_those_of_others(
        self, qwen_folders: dict[str, Path], tmp_path: Path
    ) -> None:
        for family in ("qwen2_vl", "qwen3_vl"):
            load_chooser(on_disk(qwen_folders[family], tmp_path / "off"))
        assert len(list((tmp_path / "off").iterdir())) == 2
        loading.reset()
        gc.collect()
        assert list((tmp_path / "off").iterdir()) == []

    def test_a_pass_stops_when_nobody_waits_any_more(
        self, folder: Path, tmp_path: Path, noise: Noise
    ) -> None:
        spread = load_chooser(on_disk(folder, tmp_path / "off"))
        late = Question(noise(60, 60), PROMPT, OPTIONS, due=from_now(-1))
        with pytest.raises(OutOfTimeError):
            spread.log_likelihoods([late], 4)

    def test_opening_and_asking_says_nothing(
        self, folder: Path, tmp_path: Path, questions: list[Question], said: Callable[[], str]
    ) -> None:
        load_chooser(on_disk(folder, tmp_path / "off")).log_likelihoods(questions, 4)
        assert said() == ""

    def test_a_folder_that_cannot_be_made(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        assert refused(load_chooser, on_disk(folder, tmp_path / "file" / "off"), "check `offload_folder`")


def test_logits_of_layers_on_several_gpus_are_the_same(
    chooser: Chooser, questions: list[Question], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = chooser.log_likelihoods(questions, 8)
    monkeypatch.setattr(prefix_sharing, "is_on_several_gpus", lambda model: True)
    for ours, plain in zip(chooser.log_likelihoods(questions, 8), expected, strict=True):
        np.testing.assert_allclose(ours, plain, atol=1e-5)
