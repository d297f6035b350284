from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from huggingface_hub import constants
from open_clip import factory, pretrained
from PIL import Image
from safetensors.torch import save_file

from hub_cache import write_cached
from lmm_classifier.errors import ModelError, ModelUnavailableError
from lmm_classifier.models import loading
from lmm_classifier.models.base import TextEncoder
from lmm_classifier.models.loading import load_encoder, load_text_encoder
from lmm_classifier.models.spec import ModelSpec
from tiny_models import CLIP_ARCHITECTURE, randomised

Noise = Callable[..., Image.Image]
Tiny = Callable[[str], str]
WEIGHTS = "open_clip_model.safetensors"
TEXTS = ["a photo of a daisy.", "Rose", "", "a very long text about flowers " * 30, "naïve <b>&amp;</b> 花"]


def opened(weights: str, **spec: Any) -> TextEncoder:
    loading.reset()
    return load_text_encoder(ModelSpec("clip", weights, **{"dtype": "float32", **spec}))


def refusal(weights: str) -> str:
    with pytest.raises(ModelError) as caught:
        opened(weights)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def folder(tiny: Tiny, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny("clip"), tmp_path / "clip"))


class TestText:
    @torch.inference_mode()
    def test_is_that_of_open_clip(self, tiny: Tiny) -> None:
        model = open_clip.create_model(f"local-dir:{tiny('clip')}").eval()
        tokens = open_clip.get_tokenizer(f"local-dir:{tiny('clip')}")(TEXTS)
        expected = model.encode_text(tokens, normalize=True).numpy()
        vectors = opened(tiny("clip")).encode_text(TEXTS)
        assert vectors.dtype == np.float32
        assert vectors.shape == (len(TEXTS), 24)
        assert (vectors * expected).sum(axis=1).min() >= 0.99999
        assert (expected @ expected.T)[np.triu_indices(len(TEXTS), 1)].min() < 0.9

    def test_does_not_depend_on_the_batch(self, tiny: Tiny) -> None:
        encoder = opened(tiny("clip"))
        alone = np.concatenate([encoder.encode_text([text]) for text in TEXTS])
        np.testing.assert_allclose(encoder.encode_text(TEXTS), alone, atol=2e-6)
        assert encoder.encode_text([]).shape == (0, 24)

    def test_in_bfloat16_stays_near(self, tiny: Tiny) -> None:
        exact, rough = opened(tiny("clip")), opened(tiny("clip"), dtype="bfloat16")
        assert (exact.encode_text(TEXTS) * rough.encode_text(TEXTS)).sum(axis=1).min() >= 0.98

    def test_is_not_missed_by_those_who_only_show_images(self, folder: Path, noise: Noise) -> None:
        """The text tower is looked at when it is asked."""
        without(folder, "ln_final.weight")
        encoder = opened(str(folder))
        assert encoder.encode([noise(9, 9)]).shape == (1, 24)
        with pytest.raises(
            ModelError, match=r"lacks 1 weights of its architecture, such as 'ln_final.weight'"
        ):
            encoder.encode_text(["a"])


def test_the_default_is_ViT_B_32_with_quickgelu_and_unit_vectors_of_512(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: Noise
) -> None:
    """The published architecture with two layers in place of twelve, and random weights."""
    settings = open_clip.get_model_config("ViT-B-32-quickgelu")
    for part in ("vision_cfg", "text_cfg"):
        settings[part]["layers"] = 2
    settings["text_cfg"] |= {"width": 64, "heads": 2}
    monkeypatch.setitem(factory._MODEL_CONFIGS, "ViT-B-32-quickgelu", settings)
    model = randomised(open_clip.CLIP(**settings), 0.05).eval()
    save_file(model.state_dict(), tmp_path / WEIGHTS)
    write_cached(
        tmp_path / "hub",
        "timm/vit_base_patch32_clip_224.openai",
        {WEIGHTS: (tmp_path / WEIGHTS).read_bytes()},
    )
    encoder = load_encoder(ModelSpec("clip", dtype="float32", cache_dir=tmp_path / "hub"))
    images = [noise(300, 200), noise(90, 400, seed=1)]
    transform = open_clip.image_transform(
        224, is_train=False, mean=open_clip.OPENAI_DATASET_MEAN, std=open_clip.OPENAI_DATASET_STD
    )
    with torch.no_grad():
        raw = model.encode_image(torch.stack([transform(image) for image in images]))
    vectors = encoder.encode(images)
    assert (vectors.shape, vectors.dtype) == ((2, 512), np.float32)
    assert raw.norm(dim=1).min() > 1.5
    expected = torch.nn.functional.normalize(raw, dim=1).numpy()
    np.testing.assert_allclose(vectors, expected, atol=2e-6)
    other = open_clip.CLIP(**{**settings, "quick_gelu": False}).eval()
    other.load_state_dict(model.state_dict())
    with torch.no_grad():
        gelu = other.encode_image(torch.stack([transform(image) for image in images]), normalize=True)
    assert np.abs(gelu.numpy() - vectors).max() > 1e-3  # the wrong activation would have been seen


class TestQuickGelu:
    @pytest.mark.parametrize(
        "weights",
        ["ViT-B-32/openai", "ViT-L-14/openai", "RN50/openai", "ViT-B-16/dfn2b", "ViT-B-32/metaclip_400m"],
    )
    def test_weights_trained_with_it_are_refused_without(self, weights: str) -> None:
        name, tag = weights.split("/")
        assert refusal(weights) == (
            f"model {weights!r} would compute wrong vectors: these weights were trained with QuickGELU; "
            f"use '{name}-quickgelu/{tag}'"
        )
        assert f"{name}-quickgelu" in open_clip.list_models()

    def test_is_part_of_the_fingerprint(self, folder: Path, tiny: Tiny) -> None:
        """The same weights with another activation give other vectors."""
        change(folder, model_cfg={**CLIP_ARCHITECTURE, "quick_gelu": False})
        assert opened(str(folder)).contract.fingerprint != opened(tiny("clip")).contract.fingerprint

    def test_is_the_same_fingerprint_if_defaults_are_spelt_out(self, folder: Path, tiny: Tiny) -> None:
        settings = deepcopy(CLIP_ARCHITECTURE)
        settings["vision_cfg"]["mlp_ratio"] = 4.0
        change(folder, model_cfg=settings)
        assert opened(str(folder)).contract.fingerprint == opened(tiny("clip")).contract.fingerprint


class TestWhere:
    def test_a_file_in_its_folder(self, folder: Path) -> None:
        file = folder / "open_clip_model.safetensors"
        whole = opened(str(folder)).contract
        file = file.rename(folder / "epoch-3.safetensors")
        assert opened(str(file)).contract.fingerprint == whole.fingerprint

    @pytest.mark.parametrize("suffix", [".bin", ".pt", ".pth"])
    def test_a_pickle_is_refused_unread(self, folder: Path, suffix: str) -> None:
        path = folder / f"model{suffix}"
        path.write_bytes(b"not even a pickle")
        assert "is no .safetensors, and others may run code; convert it" in refusal(str(path))

    def test_a_hub_id_and_a_tag_in_the_cache(
        self, folder: Path, tiny: Tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        repository = tmp_path / "hub/models--org--tiny-clip"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs/main").write_text("c0ffee")
        shutil.copytree(folder, repository / "snapshots/c0ffee")
        expected = opened(tiny("clip")).contract.fingerprint
        assert opened("org/tiny-clip").contract.fingerprint == expected
        assert opened("hf-hub:org/tiny-clip").contract.fingerprint == expected
        published = {"hf_hub": "org/tiny-clip/", "quick_gelu": True, "mean": [0.48, 0.46, 0.41]}
        monkeypatch.setitem(factory._MODEL_CONFIGS, "tiny-quickgelu", CLIP_ARCHITECTURE)
        monkeypatch.setitem(pretrained._PRETRAINED, "tiny-quickgelu", {"openai": published})
        encoder = opened("tiny-quickgelu/openai")
        assert encoder.contract.fingerprint == expected
        np.testing.assert_array_equal(encoder.encode_text(TEXTS), opened(tiny("clip")).encode_text(TEXTS))
        without(repository / "snapshots/c0ffee", "ln_final.weight", rename="pytorch_model.bin")
        assert "its weights are pickled, and such are never opened" in refusal("tiny-quickgelu/openai")

    @pytest.mark.parametrize(
        ("weights", "hint"),
        [
            ("ViT-B-32/opnai", "did you mean 'openai'?"),
            ("ViT-B-32", "known: openai, laion400m_e31"),
            ("coca_ViT-B-32/laion2b_s13b_b90k", "open_clip has no CLIP weights"),
        ],
    )
    def test_a_wrong_tag_is_set_right(self, weights: str, hint: str) -> None:
        assert hint in refusal(weights)

    def test_a_coca_folder(self, folder: Path) -> None:
        change(folder, model_cfg={**CLIP_ARCHITECTURE, "multimodal_cfg": {}})
        assert refusal(str(folder)) == f"model '{folder}' is a CoCa checkpoint, not a CLIP one"

    def test_every_table_entry_of_open_clip_is_on_the_hub(self) -> None:
        """Which is where its weights are fetched from."""
        for tags in pretrained._PRETRAINED.values():
            for published in tags.values():
                assert published["hf_hub"].count("/") == 2

    def test_offline_it_names_what_was_asked_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        with pytest.raises(ModelUnavailableError, match="'ViT-B-32/laion2b_s34b_b79k' is neither on this"):
            opened("ViT-B-32/laion2b_s34b_b79k")


def change(folder: Path, **settings: object) -> None:
    path = folder / "open_clip_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def without(folder: Path, name: str, rename: str = "open_clip_model.safetensors") -> None:
    from safetensors.torch import load_file, save_file

    path = folder / "open_clip_model.safetensors"
    weights = load_file(path)
    del weights[name]
    path.unlink()
    save_file(weights, folder / rename)
