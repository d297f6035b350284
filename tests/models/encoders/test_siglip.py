from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoImageProcessor,
    Siglip2Model,
    SiglipImageProcessor,
    SiglipModel,
    SiglipVisionModel,
)

from lmm_classifier.errors import ModelError
from lmm_classifier.models import loading
from lmm_classifier.models.base import Encoder
from lmm_classifier.models.loading import load_encoder
from lmm_classifier.models.spec import ModelSpec

Noise = Callable[..., Image.Image]
Copy = Callable[[Path], Path]
SIZES = [(1, 1), (2, 3), (3, 3), (3, 50), (1, 2000), (2000, 1), (32, 32), (33, 31), (640, 480)]


@pytest.fixture(params=["siglip", "siglip2"])
def case(request: pytest.FixtureRequest) -> tuple[Path, type[Any]]:
    """A checkpoint, and the whole model that transformers makes of it."""
    folder = request.getfixturevalue(f"{request.param}_folder")
    return folder, {"siglip": SiglipModel, "siglip2": Siglip2Model}[request.param]


def opened(folder: Path, **spec: Any) -> Encoder:
    loading.reset()
    return load_encoder(ModelSpec("siglip", str(folder), **{"dtype": "float32", **spec}))


def reference(folder: Path, whole_model: type[Any], image: Image.Image) -> np.ndarray:
    """What transformers' own example does with one image."""
    model = whole_model.from_pretrained(folder).eval()
    inputs = AutoImageProcessor.from_pretrained(folder)(images=image, return_tensors="pt")
    with torch.no_grad():
        features = model.get_image_features(**inputs).pooler_output[0].double().numpy()
    return features / np.linalg.norm(features)


class TestVectors:
    def test_are_those_of_the_whole_model(self, case: tuple[Path, type[Any]], noise: Noise) -> None:
        images = [noise(*size, seed=i) for i, size in enumerate(SIZES)]
        expected = np.stack([reference(*case, image) for image in images])
        vectors = opened(case[0]).encode(images)
        assert (vectors * expected).sum(axis=1).min() >= 0.99999
        assert (expected @ expected.T)[np.triu_indices(len(SIZES), 1)].min() < 0.9  # the images do matter

    def test_do_not_depend_on_the_batch(self, case: tuple[Path, type[Any]], noise: Noise) -> None:
        images = [noise(*SIZES[i % len(SIZES)], seed=i) for i in range(32)]
        encoder = opened(case[0])
        alone = np.concatenate([encoder.encode([image]) for image in images])
        np.testing.assert_allclose(encoder.encode(images), alone, atol=2e-6)

    @pytest.mark.parametrize("size", SIZES)
    def test_are_unit_float32_for_any_size(
        self, case: tuple[Path, type[Any]], size: tuple[int, int], noise: Noise
    ) -> None:
        encoder = opened(case[0])
        vectors = encoder.encode([noise(*size), Image.new("RGB", size), Image.new("RGB", size, "white")])
        assert vectors.shape == (3, 32)
        assert encoder.contract.dim == 32
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)

    def test_of_no_image_are_none(self, case: tuple[Path, type[Any]]) -> None:
        assert opened(case[0]).encode([]).shape == (0, 32)

    def test_in_bfloat16_stay_near(self, case: tuple[Path, type[Any]], noise: Noise) -> None:
        images = [noise(*size, seed=i) for i, size in enumerate(SIZES)]
        exact, rough = opened(case[0]), opened(case[0], dtype="bfloat16")
        vectors = rough.encode(images)
        assert vectors.dtype == np.float32
        assert (vectors * exact.encode(images)).sum(axis=1).min() >= 0.99
        assert rough.contract.dtype == "bfloat16"


class TestFingerprint:
    def test_is_the_same_at_every_opening_and_wherever_the_folder_lies(
        self, case: tuple[Path, type[Any]], edited: Copy
    ) -> None:
        here, again, moved = opened(case[0]), opened(case[0]), opened(edited(case[0]))
        assert here.contract == again.contract
        assert here.contract.fingerprint == moved.contract.fingerprint

    def test_changes_with_one_weight(self, siglip_folder: Path, edited: Copy) -> None:
        folder = edited(siglip_folder)
        weights = load_file(folder / "model.safetensors")
        weights["vision_model.post_layernorm.bias"][0] += 1e-6
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        assert fingerprint(folder) != fingerprint(siglip_folder)

    @pytest.mark.parametrize(
        ("key", "value"), [("image_mean", [0.5, 0.5, 0.4]), ("resample", 2), ("do_normalize", False)]
    )
    def test_changes_with_the_preprocessing(
        self, siglip_folder: Path, edited: Copy, key: str, value: object
    ) -> None:
        folder = edited(siglip_folder)
        change(folder / "preprocessor_config.json", **{key: value})
        assert fingerprint(folder) != fingerprint(siglip_folder)

    def test_changes_with_the_arithmetic(self, siglip_folder: Path) -> None:
        assert fingerprint(siglip_folder, dtype="bfloat16") != fingerprint(siglip_folder)

    def test_does_not_change_with_the_text_tower_or_how_the_file_is_cut(
        self, siglip_folder: Path, tmp_path: Path
    ) -> None:
        model = SiglipModel.from_pretrained(siglip_folder)
        model.text_model.head.weight.data += 1
        model.save_pretrained(tmp_path / "cut", max_shard_size="60KB")
        SiglipImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "cut")
        assert len(list((tmp_path / "cut").glob("*.safetensors"))) > 1
        assert fingerprint(tmp_path / "cut") == fingerprint(siglip_folder)

    def test_is_the_same_for_the_vision_tower_on_its_own(self, siglip_folder: Path, tmp_path: Path) -> None:
        SiglipVisionModel.from_pretrained(siglip_folder).save_pretrained(tmp_path)
        AutoImageProcessor.from_pretrained(siglip_folder).save_pretrained(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "siglip_vision_model"
        assert fingerprint(tmp_path) == fingerprint(siglip_folder)

    def test_does_not_change_with_a_note_about_the_processor(self, siglip_folder: Path, edited: Copy) -> None:
        """Checkpoints saved with their tokenizer carry one."""
        folder = edited(siglip_folder)
        change(folder / "preprocessor_config.json", processor_class="SiglipProcessor")
        assert fingerprint(folder) == fingerprint(siglip_folder)


def test_the_text_tower_is_not_even_built(
    siglip_folder: Path, noise: Noise, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a text tower was built")

    monkeypatch.setattr(transformers.models.siglip.modeling_siglip.SiglipTextModel, "__init__", refuse)
    assert opened(siglip_folder).encode([noise(8, 8)]).shape == (1, 32)


def test_opening_says_nothing(case: tuple[Path, type[Any]], said: Callable[[], str]) -> None:
    """transformers would list every weight of the text tower as unexpected."""
    opened(case[0])
    assert said() == ""


class TestRefuses:
    def test_missing_weights_silently_filled_with_noise(self, siglip_folder: Path, edited: Copy) -> None:
        folder = edited(siglip_folder)
        weights = load_file(folder / "model.safetensors")
        del weights["vision_model.encoder.layers.1.mlp.fc1.bias"]
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        assert "lacks 1 weights of its architecture" in refusal(folder)
        assert "encoder.layers.1.mlp.fc1.bias" in refusal(folder)

    def test_weights_of_another_shape(self, siglip_folder: Path, edited: Copy) -> None:
        folder = edited(siglip_folder)
        weights = load_file(folder / "model.safetensors")
        weights["vision_model.post_layernorm.bias"] = torch.zeros(31)
        save_file(weights, folder / "model.safetensors", {"format": "pt"})
        assert "cannot be opened as 'siglip'" in refusal(folder)

    def test_clip(self, clip_folder: Path) -> None:
        assert refusal(clip_folder) == f"model '{clip_folder}' is a 'clip' checkpoint, not a SigLIP one"

    def test_qwen(self, qwen_folders: dict[str, Path]) -> None:
        assert "is a 'qwen2_vl' checkpoint, not a SigLIP one" in refusal(qwen_folders["qwen2_vl"])

    def test_a_tower_without_pooling(self, siglip_folder: Path, edited: Copy) -> None:
        """Such towers serve in vision-language models."""
        folder = edited(siglip_folder)
        config = json.loads((folder / "config.json").read_text())
        change(folder / "config.json", vision_config=config["vision_config"] | {"vision_use_head": False})
        assert "has no pooling head" in refusal(folder)

    def test_a_processor_for_another_size_when_it_is_asked(
        self, siglip_folder: Path, edited: Copy, noise: Noise
    ) -> None:
        folder = edited(siglip_folder)
        change(folder / "preprocessor_config.json", size={"height": 40, "width": 40})
        encoder = opened(folder)
        with pytest.raises(ModelError, match="failed on 1 images") as caught:
            encoder.encode([noise(8, 8)])
        assert "\n" not in str(caught.value)


def fingerprint(folder: Path, **spec: Any) -> str:
    return opened(folder, **spec).contract.fingerprint


def refusal(folder: Path) -> str:
    loading.reset()
    with pytest.raises(ModelError) as caught:
        opened(folder)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def change(path: Path, **settings: object) -> None:
    old = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(old | settings), encoding="utf-8")
