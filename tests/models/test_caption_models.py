"""Captioners against transformers' own `generate`, called directly on one photo at a time."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForImageTextToText,
    AutoProcessor,
    BlipForConditionalGeneration,
    BlipProcessor,
)

from lmm_classifier.checkpoints.digits import picture_of, scans_in
from lmm_classifier.errors import ModelError, ModelUnavailableError
from lmm_classifier.models.captioning import captioned, load_captioner
from lmm_classifier.models.runtime.pretrained import locate
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.models.vlm.prompts import DEFAULT_PROMPT, render_prompt
from naive_qwen import prepared
from refusals import refused
from tiny_models import write_siglip
from tiny_vision import write_blip

Noise = Callable[..., Image.Image]
SIZES = [(60, 40), (30, 90), (32, 32), (1, 1), (1, 2000), (640, 480)]
CHAT = "shipped:qwen2-vl-digits"


@pytest.fixture(scope="module")
def blip(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_blip(tmp_path_factory.mktemp("tiny") / "blip")


def spec(family: str, weights: str, **options: Any) -> ModelSpec:
    return ModelSpec(family, weights, **{"dtype": "float32", **options})


class TestBlip:
    @pytest.mark.parametrize("prompt", [None, "a photo of", "the dog and the cat on"])
    def test_it_says_what_transformers_says(self, blip: str, prompt: str | None, noise: Noise) -> None:
        processor = BlipProcessor.from_pretrained(blip)
        model = BlipForConditionalGeneration.from_pretrained(blip).eval()
        images = [noise(*size, seed=i) for i, size in enumerate(SIZES)]
        expected = []
        for image in images:
            inputs = processor(images=image, return_tensors="pt", **({"text": prompt} if prompt else {}))
            with torch.inference_mode():
                ids = model.generate(**inputs, max_new_tokens=12, do_sample=False, num_beams=1)
            expected.append(processor.decode(ids[0], skip_special_tokens=True).removeprefix("[DEC]").strip())
        found = captioned(spec("blip", blip), images, prompt, 12, 4)
        assert found == expected
        assert len(set(found)) > 1
        assert all(text.startswith(prompt or "") for text in found)

    def test_no_more_positions_than_there_are(self, blip: str, noise: Noise) -> None:
        with pytest.raises(
            ModelError, match="has 80 positions: too few for a prompt of 3 tokens and max_length 77"
        ):
            captioned(spec("blip", blip), [noise(20, 20)], "a photo of", 77, 1)
        assert captioned(spec("blip", blip), [noise(20, 20)], "a photo of", 76, 1)

    def test_another_kind_of_checkpoint(self, tmp_path: Path) -> None:
        assert refused(
            load_captioner, spec("blip", write_siglip(tmp_path)), "is a 'siglip' checkpoint, not a 'blip' one"
        )

    @pytest.mark.parametrize("gone", ["model.safetensors", "config.json", "tokenizer.json"])
    def test_a_missing_file(self, blip: str, gone: str, tmp_path: Path) -> None:
        shutil.copytree(blip, tmp_path / "copy")
        (tmp_path / "copy" / gone).unlink()
        assert refused(
            load_captioner,
            spec("blip", str(tmp_path / "copy")),
            "cannot be opened as 'blip'|lacks the vocabulary of its .* 5 of 20",
        )

    def test_the_default_is_not_on_this_machine(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(ModelUnavailableError, match="'Salesforce/blip-image-captioning-base' is neither"):
            load_captioner(ModelSpec("blip"))


def by_transformers(folder: str, image: Image.Image, prompt: str, length: int) -> str:
    processor = AutoProcessor.from_pretrained(folder)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).eval()
    content = [{"type": "image", "image": prepared(processor, image)}, {"type": "text", "text": prompt}]
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        do_resize=False,
    )
    with torch.inference_mode():
        ids = model.generate(**inputs, max_new_tokens=length, do_sample=False)
    answer = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return " ".join(answer.split())


class TestChat:
    @pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
    def test_it_says_what_transformers_says(
        self, family: str, qwen_folders: dict[str, Path], noise: Noise
    ) -> None:
        """Photos of different sizes have prompts of different lengths: the shorter are padded."""
        folder = str(qwen_folders[family])
        images = [noise(*size, seed=i) for i, size in enumerate([(60, 40), (300, 200), (32, 32), (200, 90)])]
        expected = [by_transformers(folder, image, "Which label fits?", 8) for image in images]
        found = captioned(spec("image-text-to-text", folder), images, "Which label fits?", 8, 4)
        assert found == expected
        assert len(set(found)) > 1

    def test_a_trained_one_reads_digits(self) -> None:
        """The prompt it was trained on; everything after it is the answer, and nothing else."""
        scans = [scan for scan in scans_in("query") if scan.name in ("one", "two", "three")][:20]
        samples = [(picture_of(scan.pixels), scan.name) for scan in scans]
        prompt = render_prompt(DEFAULT_PROMPT, ("one", "two", "three", "unknown"))
        found = captioned(spec("image-text-to-text", CHAT), [i for i, _ in samples], prompt, 50, 8)
        assert [by_transformers(locate(CHAT), image, prompt, 50) for image, _ in samples] == found
        right = [text == label for text, (_, label) in zip(found, samples, strict=True)]
        assert sum(right) >= 19

    def test_a_checkpoint_that_would_sample_does_not(
        self, qwen_folders: dict[str, Path], edited: Callable[[Path], Path], noise: Noise,
        said: Callable[[], str],
    ) -> None:  # fmt: skip
        folder = edited(qwen_folders["qwen2_vl"])
        path = folder / "generation_config.json"
        settings = {"do_sample": True, "temperature": 5.0, "top_k": 50, "num_beams": 3, "max_length": 20}
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))
        said()
        image = [noise(60, 40)]
        found = captioned(spec("image-text-to-text", str(folder)), image, None, 8, 1)
        assert said() == ""
        plain = spec("image-text-to-text", str(qwen_folders["qwen2_vl"]))
        assert captioned(plain, image, None, 8, 1) == found

    def test_no_model_no_template_and_no_text(self, blip: str, tmp_path: Path) -> None:
        assert refused(
            load_captioner, ModelSpec("image-text-to-text"), "takes any model: name one as `weights`"
        )
        assert refused(load_captioner, spec("image-text-to-text", blip), "has no usable chat template")
        assert refused(
            load_captioner,
            spec("image-text-to-text", write_siglip(tmp_path)),
            "no usable chat template|cannot be opened",
        )

    @pytest.mark.parametrize("gone", ["model.safetensors", "config.json", "tokenizer.json"])
    def test_a_missing_file(self, gone: str, edited: Callable[[Path], Path]) -> None:
        folder = edited(Path(locate(CHAT)))
        (folder / gone).unlink()
        assert refused(
            load_captioner, spec("image-text-to-text", str(folder)), "cannot be opened|lacks the vocabulary"
        )

    @pytest.mark.parametrize("size", [(1, 1), (1, 2000), (2000, 1)])
    def test_slivers(self, size: tuple[int, int], noise: Noise) -> None:
        assert len(captioned(spec("image-text-to-text", CHAT), [noise(*size)], None, 4, 1)) == 1


@pytest.mark.parametrize("family", ["blip", "image-text-to-text"])
def test_float16_is_refused(family: str, blip: str) -> None:
    weights = blip if family == "blip" else CHAT
    assert refused(
        load_captioner,
        spec(family, weights, dtype="float16"),
        "overflows in float16; use dtype bfloat16 or float32",
    )


@pytest.mark.parametrize("family", ["blip", "image-text-to-text"])
def test_opening_and_asking_says_nothing(
    family: str, blip: str, noise: Noise, said: Callable[[], str]
) -> None:
    said()  # to write it is not silent
    captioned(spec(family, blip if family == "blip" else CHAT), [noise(20, 20)], None, 4, 1)
    assert said() == ""
