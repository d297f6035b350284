from __future__ import annotations

import json
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, pipeline

from clock import from_now
from lmm_classifier.errors import ModelError, OutOfTimeError
from lmm_classifier.models.base import Chooser, Question
from lmm_classifier.models.loading import load_chooser
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.models.vlm.prompts import YES_NO
from lmm_classifier.types import Choice
from naive_qwen import END, MODELS, OPTIONS, PROMPT, naive, prepared, whole, with_decisions

Noise = Callable[..., Image.Image]
Copy = Callable[[Path], Path]


@pytest.fixture
def questions(noise: Noise) -> list[Question]:
    """Images of 4 to 36 visual tokens, prompts and lists of options of different lengths."""
    return [
        Question(noise(56, 56, 1), PROMPT, OPTIONS),
        Question(noise(300, 40, 2), "Which?", ("rose", "tulip")),
        Question(noise(1, 1, 3), PROMPT, ("tulip",)),
        Question(noise(640, 480, 4), PROMPT + " Think of the petals." * 5, OPTIONS[::-1]),
        Question(noise(5, 60, 5), PROMPT, ("rose", "unknown", "daisy")),
    ]


class TestLogLikelihoods:
    def test_are_those_of_one_plain_forward_pass_per_answer(
        self, family: str, folder: Path, chooser: Chooser, questions: list[Question]
    ) -> None:
        expected = naive(family, folder, questions)
        rated = chooser.log_likelihoods(questions, 8)
        for ours, plain in zip(rated, expected, strict=True):
            assert ours.dtype == np.float32
            np.testing.assert_allclose(ours, plain, atol=1e-4, rtol=1e-6)

    def test_of_these_checkpoints_depend_on_image_and_prompt(self, chooser: Chooser, noise: Noise) -> None:
        """Else the comparison above would prove little."""
        images = [noise(56, 56, 1), noise(56, 56, 2), noise(300, 40, 1)]
        asked = [Question(image, PROMPT, OPTIONS) for image in images]
        asked.append(Question(images[0], PROMPT + "!", OPTIONS))
        values = np.stack(chooser.log_likelihoods(asked, 64))
        for other in values[1:]:
            assert np.abs(other - values[0]).max() > 0.05

    @pytest.mark.parametrize("batch_size", [1, 3])
    def test_do_not_depend_on_the_batch_size(
        self, chooser: Chooser, questions: list[Question], batch_size: int
    ) -> None:
        together, cut = (chooser.log_likelihoods(questions, size) for size in (64, batch_size))
        for a, b in zip(together, cut, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-4, rtol=1e-6)

    def test_do_not_depend_on_the_order_of_the_options(self, chooser: Chooser, noise: Noise) -> None:
        image, order = noise(80, 60), np.random.default_rng(0).permutation(len(OPTIONS))
        straight, shuffled = chooser.log_likelihoods(
            [Question(image, PROMPT, OPTIONS), Question(image, PROMPT, tuple(OPTIONS[i] for i in order))], 4
        )
        np.testing.assert_allclose(straight[order], shuffled, atol=1e-4, rtol=1e-6)

    def test_are_negative_and_make_probabilities(self, chooser: Chooser, questions: list[Question]) -> None:
        for question, values in zip(questions, chooser.log_likelihoods(questions, 64), strict=True):
            assert values.shape == (len(question.options),)
            assert (values <= 0).all()
            probabilities = Choice(question.options, values).probabilities
            assert tuple(probabilities) == question.options
            assert sum(probabilities.values()) == pytest.approx(1, abs=1e-12)

    def test_of_a_grey_image_are_those_of_its_rgb_twin(self, chooser: Chooser, noise: Noise) -> None:
        grey = noise(70, 50).convert("L")
        asked = [Question(image, PROMPT, OPTIONS) for image in (grey, grey.convert("RGB"))]
        a, b = chooser.log_likelihoods(asked, 1)
        np.testing.assert_array_equal(a, b)

    @pytest.mark.parametrize("size", [(1, 1), (3, 3), (1, 2000), (2000, 1), (1, 201), (30_000, 2)])
    def test_are_finite_for_any_size(self, chooser: Chooser, noise: Noise, size: tuple[int, int]) -> None:
        """One sliver must not fail the whole batch: Qwen's image processor refuses more than 200 : 1."""
        asked = [Question(image, "Which?", ("rose", "daisy")) for image in (noise(*size), noise(50, 50))]
        values = np.stack(chooser.log_likelihoods(asked, 4))
        assert np.isfinite(values).all()

    def test_of_nothing_are_nothing(self, chooser: Chooser, noise: Noise) -> None:
        assert chooser.log_likelihoods([], 4) == []
        (values,) = chooser.log_likelihoods([Question(noise(30, 30), PROMPT, ())], 4)
        assert values.shape == (0,)


class TestSharing:
    """The image and the prompt are read once, whatever the number of answers."""

    def test_passes_through_the_model(
        self, family: str, folder: Path, chooser: Chooser, noise: Noise, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        passes: list[tuple[bool, tuple[int, ...]]] = []
        forward = MODELS[family].forward

        @wraps(forward)
        def counting(self: Any, **inputs: Any) -> Any:
            passes.append(("pixel_values" in inputs, tuple(inputs["input_ids"].shape)))
            return forward(self, **inputs)

        monkeypatch.setattr(MODELS[family], "forward", counting)
        asked = [Question(noise(90, 60, i), PROMPT, ("rose", "tulip", "daisy")) for i in range(4)]
        chooser.log_likelihoods(asked, 6)
        with_image = [shape for image, shape in passes if image]
        answers = [shape for image, shape in passes if not image]
        assert [rows for rows, _ in with_image] == [2, 2]
        assert [rows for rows, _ in answers] == [2, 2]  # three answers side by side in each row
        assert all(tokens < 30 for _, tokens in answers)

    @pytest.mark.parametrize("batch_size", [1, 2, 7, 64])
    def test_answers_that_do_not_fit_one_pass_share_it_all_the_same(
        self, family: str, folder: Path, chooser: Chooser, questions: list[Question], batch_size: int
    ) -> None:
        expected = naive(family, folder, questions)
        for ours, plain in zip(chooser.log_likelihoods(questions, batch_size), expected, strict=True):
            np.testing.assert_allclose(ours, plain, atol=1e-4, rtol=1e-6)

    def test_questions_about_one_image(
        self, family: str, folder: Path, chooser: Chooser, noise: Noise, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The image goes through the model once, for however many questions."""
        passes: list[bool] = []
        forward = MODELS[family].forward

        @wraps(forward)
        def counting(self: Any, **inputs: Any) -> Any:
            passes.append("pixel_values" in inputs)
            return forward(self, **inputs)

        image, other = noise(300, 200, 1), noise(90, 60, 2)
        about = [Question(image, f"Is this a {name}?", YES_NO, "yes_no") for name in OPTIONS]
        about.insert(2, Question(other, "Is this a rose?", YES_NO, "yes_no"))
        expected = naive(family, folder, [whole(family, folder, question) for question in about])
        monkeypatch.setattr(MODELS[family], "forward", counting)
        for ours, plain in zip(chooser.log_likelihoods(about, 64), expected, strict=True):
            np.testing.assert_allclose(ours, plain, atol=1e-4, rtol=1e-6)
        assert passes == [True, False]

    @pytest.mark.parametrize("batch_size", [1, 4, 64])
    def test_exemplars(
        self, family: str, folder: Path, chooser: Chooser, noise: Noise, batch_size: int
    ) -> None:
        """Of two questions about one image, the pictures they have in common and those they have not."""
        image, rose, tulip = noise(120, 90, 1), noise(60, 60, 2), noise(80, 40, 3)
        questions = [
            Question(image, "Which?", ("a", "b"), "letter", (("A:", rose), ("B:", tulip))),
            Question(image, "Which?", ("a", "b"), "letter", (("A:", rose), ("B:", rose))),
            Question(image, "Which one?", ("a", "b"), "letter", (("A:", tulip), ("B:", rose))),
            Question(image, "The same?", OPTIONS, exemplars=(("", tulip),)),
            Question(image, "The same?", OPTIONS, exemplars=(("", rose),)),
            Question(rose, "The same?", OPTIONS, exemplars=(("", rose), ("and " * 400, image))),
        ]
        rated = chooser.log_likelihoods(questions, batch_size)
        for ours, plain in zip(rated, naive(family, folder, questions), strict=True):
            np.testing.assert_allclose(ours, plain, atol=1e-4, rtol=1e-6)
        assert np.abs(rated[3] - rated[4]).max() > 0.01  # an exemplar that is not looked at proves little


class TestLetters:
    @with_decisions
    def test_are_rated_as_by_transformers_decision_pipeline(
        self, folder: Path, chooser: Chooser, noise: Noise
    ) -> None:
        decide = pipeline("decision", model=str(folder), dtype=torch.float32)
        processor = AutoProcessor.from_pretrained(folder)
        images = [noise(90, 60, 1), noise(200, 120, 2)]
        prompt, labels = "Which label fits?", ("rose", "tulip\n{x}", "daisy", "unknown")
        asked = [Question(image, prompt, labels, "letter") for image in images]
        for image, values in zip(images, chooser.log_likelihoods(asked, 8), strict=True):
            choice = {"type": "choice", "instructions": prompt, "criteria": dict.fromkeys(labels)}
            found = decide(
                {
                    "state": "<p>",
                    "questions": {"label": choice},
                    "assets": {"<p>": prepared(processor, image)},
                }
            )
            expected = found["label"]["probabilities"]
            ours = Choice(labels, values).probabilities
            assert list(ours) == list(expected)
            np.testing.assert_allclose(list(ours.values()), list(expected.values()), atol=1e-5)

    def test_that_are_no_single_tokens_are_refused(self, qwen_folders: dict[str, Path], edited: Copy) -> None:
        copy = edited(qwen_folders["qwen2_vl"])
        tokenizer = json.loads((copy / "tokenizer.json").read_text(encoding="utf-8"))
        tokenizer["model"]["vocab"]["not in any alphabet"] = tokenizer["model"]["vocab"].pop("B")
        (copy / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
        question = Question(Image.new("RGB", (60, 60)), "Which?", ("rose", "tulip"), "letter")
        with pytest.raises(ModelError, match="no single token for each of the letters A, B: let options"):
            load_chooser(ModelSpec("qwen-vl", str(copy))).log_likelihoods([question], 4)


def test_what_is_shared_is_what_a_whole_pass_says(chooser: Any, questions: list[Question]) -> None:
    """The self-test of a model at its start compares with this."""
    for question, values in zip(questions, chooser.log_likelihoods(questions, 8), strict=True):
        np.testing.assert_allclose(chooser.plain_log_likelihoods(question), values, atol=1e-4, rtol=1e-6)


def test_a_pass_stops_when_nobody_waits_any_more(chooser: Chooser, noise: Noise) -> None:
    late, patient = (Question(noise(60, 60), PROMPT, OPTIONS, due=due) for due in (from_now(-1), None))
    with pytest.raises(OutOfTimeError):
        chooser.log_likelihoods([late], 4)
    (values,) = chooser.log_likelihoods([patient], 4)
    assert np.isfinite(values).all()


class TestRefuses:
    def test_missing_weights_silently_filled_with_noise(self, folder: Path, edited: Copy) -> None:
        copy = edited(folder)
        weights = load_file(copy / "model.safetensors")
        name = min(name for name in weights if name.endswith("layers.1.mlp.up_proj.weight"))
        del weights[name]
        save_file(weights, copy / "model.safetensors", {"format": "pt"})
        assert "lacks 1 weights of its architecture" in refusal(copy)

    @pytest.mark.parametrize("other", ["clip_folder", "siglip_folder"])
    def test_another_kind_of_model(self, other: str, request: pytest.FixtureRequest) -> None:
        folder = request.getfixturevalue(other)
        assert refusal(folder) == (
            f"model '{folder}' is a '{folder.name}' checkpoint; "
            "'qwen-vl' takes qwen2_vl, qwen2_5_vl, qwen3_vl, qwen3_vl_moe"
        )

    @pytest.mark.parametrize(
        "template", [None, "{{ raise_exception('no\nsystem turn') }}", "{% if %}", "no text", ""]
    )
    def test_an_unusable_chat_template_at_once(
        self, qwen_folders: dict[str, Path], edited: Copy, template: str | None
    ) -> None:
        """At the first question, it would cost a model that was loaded in vain."""
        copy = edited(qwen_folders["qwen2_vl"])
        (copy / "chat_template.jinja").unlink()
        if template is not None:
            (copy / "chat_template.jinja").write_text(template, encoding="utf-8")
        assert "has no usable chat template" in refusal(copy)


def test_opening_and_asking_says_nothing(folder: Path, noise: Noise, said: Callable[[], str]) -> None:
    chooser = load_chooser(ModelSpec("qwen-vl", str(folder)))
    chooser.log_likelihoods([Question(noise(30, 30), PROMPT, ("rose", END))], 1)
    assert said() == ""


def test_bfloat16_comes_near(folder: Path, chooser: Chooser, questions: list[Question]) -> None:
    rough = load_chooser(ModelSpec("qwen-vl", str(folder), dtype="bfloat16"))
    for a, b in zip(chooser.log_likelihoods(questions, 8), rough.log_likelihoods(questions, 8), strict=True):
        np.testing.assert_allclose(a, b, rtol=0.05)


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_chooser(ModelSpec("qwen-vl", str(folder)))
    assert "\n" not in str(caught.value)
    return str(caught.value)
