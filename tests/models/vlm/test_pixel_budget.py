"""How many pixels of a photo a Qwen-VL model sees, against Qwen's own library."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from transformers import AutoProcessor

from lmm_classifier.models.base import Question
from lmm_classifier.models.captioning import load_captioner
from lmm_classifier.models.loading import load_chooser, load_encoder
from lmm_classifier.models.runtime.resizing import MAX_PIXELS, side_of
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.models.vlm.answer_cache import _key
from lmm_classifier.models.vlm.pixel_budget import PixelBudget
from lmm_classifier.steps.rerank import Rerank
from naive_qwen import MODELS, PROMPT, prepared
from refusals import refused

Noise = Callable[..., Image.Image]
SIZES = [(56, 56), (64, 64), (300, 40), (640, 480), (5, 60), (1000, 700), (12, 9)]
BUDGETS = [(None, None), (None, 20_000), (None, 200_000), (12_000, None), (50_000, None), (10_000, 30_000)]
"""Below, between and above what the processors of the tiny checkpoints say: 4 to 36 tokens."""


@pytest.mark.parametrize(("least", "most"), BUDGETS)
def test_the_model_sees_what_qwens_library_and_the_processor_make_of_a_photo(
    family: str, folder: Path, noise: Noise, least: int | None, most: int | None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    seen: list[Any] = []
    forward = MODELS[family].forward

    @wraps(forward)
    def watching(self: Any, **inputs: Any) -> Any:
        if "pixel_values" in inputs:
            seen.append(inputs)
        return forward(self, **inputs)

    monkeypatch.setattr(MODELS[family], "forward", watching)
    spec = ModelSpec("qwen-vl", str(folder), dtype="float32", min_pixels=least, max_pixels=most)
    chooser = load_chooser(spec)
    processor = AutoProcessor.from_pretrained(folder)
    size = processor.image_processor.size
    if least is not None and most is None:  # what is left out gives way
        most = max(least, size["longest_edge"])
    for i, image in enumerate(noise(*size, seed) for seed, size in enumerate(SIZES)):
        chooser.log_likelihoods([Question(image, PROMPT, ("rose", "tulip"))], 4)
        shown = prepared(processor, image, least, most)
        expected = processor.image_processor(images=[shown], do_resize=False, return_tensors="pt")
        np.testing.assert_array_equal(seen[i]["pixel_values"], expected["pixel_values"])
        np.testing.assert_array_equal(seen[i]["image_grid_thw"], expected["image_grid_thw"])


def test_a_photo_is_seen_alike_whatever_is_beside_it(folder: Path, noise: Noise) -> None:
    chooser = load_chooser(ModelSpec("qwen-vl", str(folder), dtype="float32", max_pixels=60_000))
    asked = [Question(noise(*size, 1), PROMPT, ("rose", "tulip")) for size in SIZES]
    for question, values in zip(asked, chooser.log_likelihoods(asked, 64), strict=True):
        [alone] = chooser.log_likelihoods([question], 64)
        np.testing.assert_allclose(values, alone, atol=1e-4)


@given(
    st.integers(1, 5000),
    st.integers(1, 5000),
    st.sampled_from([28, 32]),
    st.integers(1, 40),
    st.integers(0, 1200),
)
def test_no_photo_has_more_than_the_budget_or_a_broken_patch(
    width: int, height: int, factor: int, least: int, more: int
) -> None:
    budget = PixelBudget(factor, least * factor**2, (least + more) * factor**2)
    wide, high = budget.size(width, height)
    assert wide % factor == high % factor == 0
    assert min(wide, high) >= factor
    if width * height > 4 * budget.most:  # else Qwen's rule may round what it enlarges up, and above
        assert wide * high <= budget.most


@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (2000, 1), (30_000, 2), (1, 201)])
@pytest.mark.parametrize("tokens", [1, 4, 300])
def test_of_a_sliver_keeps_within_it(size: tuple[int, int], tokens: int) -> None:
    wide, high = PixelBudget(28, 1, tokens * 28 * 28).size(*size)
    assert 28 * 28 <= wide * high <= tokens * 28 * 28


def test_a_photo_that_fits_is_not_resized(noise: Noise) -> None:
    image = noise(56, 84)
    assert PixelBudget(28, 4 * 28 * 28, MAX_PIXELS).fitted(image).tobytes() == image.tobytes()


def test_of_published_checkpoints_is_bounded_by_the_default() -> None:
    class Published:
        patch_size, merge_size = 14, 2
        size: ClassVar = {"shortest_edge": 56 * 56, "longest_edge": 16384 * 28 * 28}

    def of(**options: int) -> tuple[int, int]:
        budget = PixelBudget.of(ModelSpec("qwen-vl", **options), "x", Published())
        return budget.least, budget.most

    assert of() == (56 * 56, MAX_PIXELS)
    assert of(max_pixels=5_000_000) == (56 * 56, 5_000_000)
    assert of(max_pixels=2000) == (2000, 2000)
    assert of(min_pixels=2_000_000) == (2_000_000, 2_000_000)
    assert of(min_pixels=1000, max_pixels=2000) == (1000, 2000)


class TestRefuses:
    @pytest.mark.parametrize("load", [load_chooser, load_captioner])
    def test_less_than_a_token(self, folder: Path, load: Callable[[ModelSpec], Any]) -> None:
        family = "qwen-vl" if load is load_chooser else "image-text-to-text"
        says = (
            r"max_pixels 100 is less than a visual token of .*, (28|32) x .*: raise it to (784|1024) at least"
        )
        assert refused(load, ModelSpec(family, str(folder), max_pixels=100), says)

    @pytest.mark.parametrize(
        ("load", "family", "option"),
        [
            (load_encoder, "siglip", "min_pixels"),
            (load_encoder, "clip", "max_pixels"),
            (load_encoder, "dinov2-timm", "max_pixels"),
            (load_encoder, "onnx", "max_pixels"),
            (load_encoder, "fake", "max_pixels"),
            (load_chooser, "fake", "min_pixels"),
            (load_chooser, "openai_api", "min_pixels"),
            (load_captioner, "blip", "max_pixels"),
        ],
    )
    def test_other_families(self, load: Callable[[ModelSpec], Any], family: str, option: str) -> None:
        assert refused(load, ModelSpec(family, **{option: 5000}), f"{family}.* leave `{option}` out")

    def test_a_captioner_that_is_not_qwens(self, siglip_folder: Path) -> None:
        spec = ModelSpec("image-text-to-text", str(siglip_folder), max_pixels=5000)
        assert refused(
            load_captioner, spec, "'siglip.*' checkpoint: min_pixels and max_pixels are for qwen2_vl"
        )

    @pytest.mark.parametrize("options", [{"min_pixels": 0}, {"max_pixels": -1}, {"max_pixels": 2.5}])
    def test_what_is_no_number_of_pixels(self, options: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            ModelSpec("qwen-vl", **options)

    def test_an_empty_range(self) -> None:
        with pytest.raises(ValidationError, match="max_pixels 10 is less than min_pixels 20: raise it or"):
            ModelSpec("qwen-vl", min_pixels=20, max_pixels=10)


class TestWhatDependsOnIt:
    def test_a_calibration_is_of_the_budget_it_was_made_with(self) -> None:
        plain = Rerank(ModelSpec("qwen-vl", "a/b")).identity
        assert plain.startswith("qwen-vl a/b main, listwise likelihood, ")
        capped = Rerank(ModelSpec("qwen-vl", "a/b", max_pixels=5000)).identity
        assert capped == plain.replace("main, ", "main, default to 5000 pixels, ")
        assert Rerank(ModelSpec("qwen-vl", "a/b", min_pixels=5000)).identity not in {plain, capped}

    def test_so_are_remembered_answers(self, qwen_folders: dict[str, Path], noise: Noise) -> None:
        question = Question(noise(9, 9), "Which?", ("a", "b"))
        specs = [
            ModelSpec(family, weights, dtype=dtype, max_pixels=most)
            for family, weights, dtype in (
                ("qwen-vl", str(qwen_folders["qwen2_vl"]), "float32"),
                ("openai_api", "http://localhost/v1#a", "auto"),
            )
            for most in (None, 5000, 6000)
        ]
        assert len({_key(load_chooser(spec), spec, question) for spec in specs}) == len(specs)

    @pytest.mark.parametrize("family", ["qwen-vl", "openai_api"])
    def test_a_photo_is_decoded_large_enough(self, family: str) -> None:
        def side(**options: int) -> int | None:
            return Rerank(ModelSpec(family, "./nowhere", **options), scoring="letter").resolution()

        assert side() == side(max_pixels=5000) == side_of(MAX_PIXELS)
        assert side(max_pixels=4_000_000) == 2001
        assert side(min_pixels=4_000_000) == 2001
        assert Rerank(ModelSpec("fake", max_pixels=4_000_000)).resolution() is None
