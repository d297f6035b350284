"""Every family with weights against its own library, on checkpoints of the real classes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import timm
import torch
from huggingface_hub import constants
from onnx.reference import ReferenceEvaluator
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.data import create_transform, resolve_model_data_config
from transformers import AutoImageProcessor, Dinov2Model, DINOv3ViTModel

from lmm_classifier.errors import ModelError, ModelUnavailableError
from lmm_classifier.models import loading
from lmm_classifier.models.base import Encoder
from lmm_classifier.models.loading import load_encoder
from lmm_classifier.models.runtime.resizing import without_sliver
from lmm_classifier.models.spec import ModelSpec
from tiny_models import REGISTERS

Noise = Callable[..., Image.Image]
Tiny = Callable[[str], str]
FAMILIES = ("clip", "dinov2", "dinov2-timm", "dinov3", "dinov3-patch", "onnx")
WITH_TENSORS = FAMILIES[:-1]
SIZES = [(1, 1), (2, 3), (3, 50), (1, 2000), (2000, 1), (2001, 3), (32, 32), (33, 31), (640, 480), (199, 600)]


def opened(family: str, weights: str, **spec: Any) -> Encoder:
    loading.reset()
    return load_encoder(ModelSpec(family, weights, **{"dtype": "float32", **spec}))


def of_dinov2(folder: str, image: Image.Image) -> Any:
    inputs = AutoImageProcessor.from_pretrained(folder)(images=image, return_tensors="pt")
    return Dinov2Model.from_pretrained(folder).eval()(**inputs).last_hidden_state[0, 0]


def of_dinov3(folder: str, image: Image.Image) -> Any:
    inputs = AutoImageProcessor.from_pretrained(folder)(images=image, return_tensors="pt")
    return DINOv3ViTModel.from_pretrained(folder).eval()(**inputs).last_hidden_state[0]


def of_timm(folder: str, image: Image.Image) -> Any:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    return model.forward_features(transform(image).unsqueeze(0))[0, 0]


def of_open_clip(folder: str, image: Image.Image) -> Any:
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    return model.eval().encode_image(transform(image).unsqueeze(0))[0]


def of_onnx(path: str, image: Image.Image) -> Any:
    """Resize the short side to 32 / 0.875, then take the middle: another order than ours."""
    width, height = image.size
    scale = 32 / 0.875 / min(width, height)
    half = 16 / scale
    box = (width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half)
    pixels = np.asarray(image.resize((32, 32), Image.Resampling.BICUBIC, box), np.float32) / 255
    pixels = ((pixels - [0.5, 0.4, 0.3]) / [0.2, 0.3, 0.25]).astype(np.float32)
    return torch.from_numpy(
        ReferenceEvaluator(path).run(["tokens"], {"image": pixels.transpose(2, 0, 1)[None]})[0][0, 0]
    )


REFERENCES: dict[str, Callable[[str, Image.Image], Any]] = {
    "clip": of_open_clip,
    "dinov2": of_dinov2,
    "dinov2-timm": of_timm,
    "dinov3": lambda folder, image: of_dinov3(folder, image)[0],
    "dinov3-patch": lambda folder, image: of_dinov3(folder, image)[1 + REGISTERS :].mean(dim=0),
    "onnx": of_onnx,
}


@pytest.mark.parametrize("family", FAMILIES)
class TestVectors:
    @torch.inference_mode()
    def test_are_those_of_the_library(self, family: str, tiny: Tiny, noise: Noise) -> None:
        images = [noise(*size, seed=i) for i, size in enumerate(SIZES)]
        features = torch.stack([REFERENCES[family](tiny(family), image) for image in images]).double()
        expected = torch.nn.functional.normalize(features, dim=1).numpy()
        agreement = (opened(family, tiny(family)).encode(images) * expected).sum(axis=1)
        for size, cosine in zip(SIZES, agreement, strict=True):
            assert cosine >= (0.999 if max(size) > 16 * min(size) else 0.99999), size
        assert (expected @ expected.T)[np.triu_indices(len(SIZES), 1)].min() < 0.9  # the images do matter

    def test_do_not_depend_on_the_batch(self, family: str, tiny: Tiny, noise: Noise) -> None:
        images = [noise(*SIZES[i % len(SIZES)], seed=i) for i in range(32)]
        encoder = opened(family, tiny(family))
        alone = np.concatenate([encoder.encode([image]) for image in images])
        np.testing.assert_allclose(encoder.encode(images), alone, atol=2e-6)

    @pytest.mark.parametrize("size", SIZES)
    def test_are_unit_float32_for_any_size(
        self, family: str, size: tuple[int, int], tiny: Tiny, noise: Noise
    ) -> None:
        vectors = opened(family, tiny(family)).encode([noise(*size), Image.new("RGB", size)])
        assert vectors.dtype == np.float32
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize(
    ("size", "kept"),
    [
        ((640, 480), (640, 480)),
        ((32, 2), (32, 2)),
        ((33, 2), (33, 2)),  # cutting both ends would take two
        ((2000, 1), (16, 1)),
        ((3, 2001), (3, 49)),
        ((60_000, 7), (112, 7)),
    ],
)
def test_a_sliver_keeps_its_centre(size: tuple[int, int], kept: tuple[int, int]) -> None:
    """Resized whole to a short side of 518 px, 60,000 x 7 px would have 2.3 billion."""
    width, height = size
    ramp = np.linspace(0, 200, max(size)).astype(np.uint8)
    pixels = np.broadcast_to(ramp if width > height else ramp[:, None], (height, width))
    image = without_sliver(Image.fromarray(np.stack([pixels] * 3, axis=-1)))
    assert image.size == kept
    assert abs(float(np.asarray(image).mean()) - 99.5) <= 1


@pytest.mark.parametrize("family", WITH_TENSORS)
class TestFingerprint:
    def test_is_the_same_at_every_opening_and_wherever_the_folder_lies(
        self, family: str, tiny: Tiny, tmp_path: Path
    ) -> None:
        here, again = opened(family, tiny(family)).contract, opened(family, tiny(family)).contract
        moved = opened(family, copied(tiny(family), tmp_path)).contract
        assert here == again
        assert here.fingerprint == moved.fingerprint

    def test_changes_with_one_weight(self, family: str, tiny: Tiny, tmp_path: Path) -> None:
        folder = copied(tiny(family), tmp_path)
        path, weights = tensors(folder)
        name = next(name for name in sorted(weights) if "norm" in name or "visual.ln_post" in name)
        weights[name].view(-1)[0] += 1e-6
        save_file(weights, path, {"format": "pt"})
        assert fingerprint(family, folder) != fingerprint(family, tiny(family))

    def test_changes_with_the_preprocessing(self, family: str, tiny: Tiny, tmp_path: Path) -> None:
        folder = copied(tiny(family), tmp_path)
        path, keys = {
            "clip": ("open_clip_config.json", ("preprocess_cfg", "mean")),
            "dinov2-timm": ("config.json", ("pretrained_cfg", "mean")),
        }.get(family, ("preprocessor_config.json", ("image_mean",)))
        settings = json.loads((Path(folder) / path).read_text())
        (settings if len(keys) == 1 else settings[keys[0]])[keys[-1]] = [0.1, 0.2, 0.3]
        (Path(folder) / path).write_text(json.dumps(settings))
        assert fingerprint(family, folder) != fingerprint(family, tiny(family))

    def test_changes_with_the_arithmetic(self, family: str, tiny: Tiny, noise: Noise) -> None:
        exact, rough = opened(family, tiny(family)), opened(family, tiny(family), dtype="bfloat16")
        assert rough.contract.fingerprint != exact.contract.fingerprint
        assert rough.contract.dtype == "bfloat16"
        images = [noise(*size, seed=i) for i, size in enumerate(SIZES)]
        assert (rough.encode(images) * exact.encode(images)).sum(axis=1).min() >= 0.99


def test_fingerprints_differ_between_families_of_the_same_weights(tiny: Tiny) -> None:
    weights = tiny("dinov3")
    assert fingerprint("dinov3", weights) != fingerprint("dinov3-patch", weights)


@pytest.mark.parametrize("family", WITH_TENSORS)
class TestRefuses:
    def test_missing_weights_silently_left_random(self, family: str, tiny: Tiny, tmp_path: Path) -> None:
        folder = copied(tiny(family), tmp_path)
        path, weights = tensors(folder)
        gone = next(name for name in sorted(weights) if "norm" in name or "visual.ln_post" in name)
        del weights[gone]
        save_file(weights, path, {"format": "pt"})
        assert "lacks 1 weights of its architecture" in refusal(family, folder)
        assert gone.removeprefix("visual.") in refusal(family, folder)

    def test_weights_of_another_shape(self, family: str, tiny: Tiny, tmp_path: Path) -> None:
        folder = copied(tiny(family), tmp_path)
        path, weights = tensors(folder)
        name = next(name for name in sorted(weights) if "norm" in name or "visual.ln_post" in name)
        weights[name] = torch.zeros(31)
        save_file(weights, path, {"format": "pt"})
        assert f"cannot be opened as {family!r}" in refusal(family, folder)

    @pytest.mark.parametrize("spoilt", [b"", b"\xff" * 64, "half"])
    def test_damaged_weights(self, family: str, tiny: Tiny, tmp_path: Path, spoilt: bytes | str) -> None:
        folder = copied(tiny(family), tmp_path)
        path, _ = tensors(folder)
        data = path.read_bytes()
        path.write_bytes(data[: len(data) // 2] if isinstance(spoilt, str) else spoilt)
        assert folder in refusal(family, folder)

    @pytest.mark.parametrize("content", ["", "[]", "{}", "{", "null", "\ufffd", "[" * 100_000])
    def test_damaged_settings(self, family: str, tiny: Tiny, tmp_path: Path, content: str) -> None:
        folder = copied(tiny(family), tmp_path)
        name = "open_clip_config.json" if family == "clip" else "config.json"
        (Path(folder) / name).write_text(content, encoding="utf-8")
        assert folder in refusal(family, folder)

    def test_pickled_weights(self, family: str, tiny: Tiny, tmp_path: Path) -> None:
        """Harmless or not, a pickle is not even read."""
        folder = copied(tiny(family), tmp_path)
        path, weights = tensors(folder)
        path.unlink()
        torch.save(weights, path.with_suffix(".bin"))
        torch.save(weights, path.with_name("pytorch_model.bin"))
        torch.save(weights, path.with_name("open_clip_pytorch_model.bin"))
        assert folder in refusal(family, folder)

    def test_a_checkpoint_of_another_kind(self, family: str, tiny: Tiny) -> None:
        for other in set(WITH_TENSORS) - {family}:
            if {family, other} != {"dinov3", "dinov3-patch"}:
                assert tiny(other) in refusal(family, tiny(other))


class TestNotOnThisMachine:
    @pytest.fixture(autouse=True)
    def empty_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    @pytest.mark.parametrize(
        ("family", "default"),
        [
            ("clip", "ViT-B-32-quickgelu/openai"),
            ("dinov2", "facebook/dinov2-base"),
            ("dinov2-timm", "timm/vit_base_patch14_dinov2.lvd142m"),
        ],
    )
    def test_is_one_line_that_says_what_to_do(
        self, family: str, default: str, said: Callable[[], str]
    ) -> None:
        with pytest.raises(ModelUnavailableError) as caught:
            load_encoder(ModelSpec(family))
        assert str(caught.value).startswith(
            f"model {default!r} is neither on this machine nor reachable: connect once so that it can be "
            "downloaded, or set `weights` to a local folder ("
        )
        assert "\n" not in str(caught.value)
        assert said() == ""

    @pytest.mark.parametrize("family", WITH_TENSORS)
    def test_of_a_hub_id_and_of_a_folder(self, family: str) -> None:
        assert "neither on this machine nor reachable" in refusal(family, "some/model")
        assert refusal(family, "./nowhere") == "model folder './nowhere' does not exist; check `weights`"

    @pytest.mark.parametrize("family", FAMILIES)
    @pytest.mark.parametrize(
        "weights", ["~no-such-user-here/model", "no blanks/allowed", "./nul\0", "a/b/c/d"]
    )
    def test_of_a_name_that_is_none(self, family: str, weights: str) -> None:
        assert repr(weights) in refusal(family, weights)

    @pytest.mark.parametrize("family", ["dinov3", "dinov3-patch"])
    def test_of_dinov3_says_how_to_get_access(self, family: str) -> None:
        how = "accept the licence at https://huggingface.co/facebook/{} and run `hf auth login`"
        small, base_ = "dinov3-vits16-pretrain-lvd1689m", "dinov3-vitb16-pretrain-lvd1689m"
        error = refusal(family, f"facebook/{small}")
        assert error.endswith(f"; DINOv3 is gated: {how.format(small)}")
        assert refusal(family, "") == (
            f"encoder {family!r} has no default weights: {how.format(base_)}, "
            f"then set weights: facebook/{base_}"
        )


@pytest.mark.parametrize("family", WITH_TENSORS)
def test_opening_says_nothing(family: str, tiny: Tiny, said: Callable[[], str]) -> None:
    weights = tiny(family)
    said()  # what writing the checkpoint said
    opened(family, weights)
    assert said() == ""


def copied(weights: str, tmp_path: Path) -> str:
    return str(shutil.copytree(weights, tmp_path / "copy" / Path(weights).name))


def tensors(folder: str) -> tuple[Path, dict[str, torch.Tensor]]:
    [path] = Path(folder).glob("*.safetensors")
    return path, load_file(path)


def fingerprint(family: str, weights: str) -> str:
    return opened(family, weights).contract.fingerprint


def refusal(family: str, weights: str) -> str:
    with pytest.raises(ModelError) as caught:
        opened(family, weights)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 450
    return str(caught.value)
