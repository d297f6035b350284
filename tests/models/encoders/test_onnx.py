from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import yaml
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from PIL import Image

from lmm_classifier.errors import ModelError, ModelUnavailableError
from lmm_classifier.models import loading
from lmm_classifier.models.base import Encoder
from lmm_classifier.models.loading import load_encoder
from lmm_classifier.models.spec import ModelSpec
from tiny_models import write_graph

Noise = Callable[..., Image.Image]
PLAIN: dict[str, Any] = {"size": [32, 32], "scale": 0.01}


def opened(weights: Path | str, **spec: Any) -> Encoder:
    loading.reset()
    return load_encoder(ModelSpec("onnx", str(weights), **spec))


def refusal(weights: Path | str, **spec: Any) -> str:
    with pytest.raises(ModelError) as caught:
        opened(weights, **spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    write_graph(tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def described(model: Path, **settings: Any) -> Path:
    model.with_suffix(".yaml").write_text(yaml.safe_dump(PLAIN | settings), encoding="utf-8")
    return model


def unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class TestPooling:
    @pytest.mark.parametrize(
        ("output", "pooling", "axis"),
        [("mean", "none", None), (None, "none", None), ("tokens", "mean", 1), ("grid", "mean", (2, 3))],
    )
    def test_is_as_described(
        self, model: Path, noise: Noise, output: str | None, pooling: str, axis: Any
    ) -> None:
        images = [noise(32, 32, seed=i) for i in range(3)]
        pixels = np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2) * np.float32(0.01)
        [raw] = ReferenceEvaluator(str(model)).run([output or "mean"], {"image": pixels.astype(np.float32)})
        expected = unit(raw if axis is None else raw.mean(axis=axis))
        vectors = opened(described(model, output=output, pooling=pooling)).encode(images)
        assert (vectors * expected).sum(axis=1).min() >= 0.99999

    @pytest.mark.parametrize(("output", "pooling"), [("tokens", "none"), ("mean", "cls"), ("grid", "cls")])
    def test_that_does_not_fit_is_refused(self, model: Path, output: str, pooling: str) -> None:
        assert f"of which `pooling: {pooling}` makes no vectors" in refusal(
            described(model, output=output, pooling=pooling)
        )


class TestInput:
    @pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
    @pytest.mark.parametrize("dtype", ["uint8", "float32"])
    @pytest.mark.parametrize("channels", ["RGB", "BGR"])
    def test_arrives_as_described(self, tmp_path: Path, layout: str, dtype: str, channels: str) -> None:
        """The graph hands back its input: the vector is the picture."""
        shape = ["n", 3, 2, 4] if layout == "NCHW" else ["n", 2, 4, 3]
        path = identity(tmp_path / "identity.onnx", shape, dtype)
        numbers = {} if dtype == "uint8" else {"scale": 0.5, "mean": [1, 2, 3], "std": [1, 2, 4]}
        settings = {"size": [2, 4], "layout": layout, "dtype": dtype, "channels": channels, **numbers}
        path.with_suffix(".json").write_text(json.dumps(settings))
        pixels = np.random.default_rng(0).integers(1, 256, (2, 4, 3), dtype=np.uint8)
        expected = pixels[..., ::-1] if channels == "BGR" else pixels
        if numbers:
            expected = (expected * 0.5 - [1, 2, 3]) / [1, 2, 4]
        expected = (expected.transpose(2, 0, 1) if layout == "NCHW" else expected).reshape(1, -1)
        vectors = opened(path).encode([Image.fromarray(pixels)])
        np.testing.assert_allclose(vectors, unit(expected.astype(np.float64)), atol=1e-6)

    @pytest.mark.parametrize(
        ("settings", "box"),
        [
            ({}, (0, 0, 40, 20)),
            ({"resize": "centre-crop"}, (10, 0, 30, 20)),
            ({"resize": "centre-crop", "crop": 0.5}, (15, 5, 25, 15)),
            ({"resize": "centre-crop", "size": [32, 16]}, (15, 0, 25, 20)),
        ],
    )
    def test_shows_the_described_part(
        self, tmp_path: Path, noise: Noise, settings: dict[str, Any], box: tuple[int, ...]
    ) -> None:
        height, width = settings.get("size", [32, 32])
        path = identity(tmp_path / "identity.onnx", ["n", height, width, 3], "uint8")
        plain = {"size": [32, 32], "layout": "NHWC", "dtype": "uint8"}
        path.with_suffix(".yaml").write_text(yaml.safe_dump(plain | settings))
        image = noise(40, 20)
        expected = np.asarray(image.resize((width, height), Image.Resampling.BICUBIC, box), np.float64)
        np.testing.assert_allclose(opened(path).encode([image]), unit(expected.reshape(1, -1)), atol=1e-6)

    @pytest.mark.parametrize("batch", [1, 3])
    def test_of_a_fixed_batch_is_filled_up(
        self, tmp_path: Path, model: Path, noise: Noise, batch: int
    ) -> None:
        images = [noise(9 + i, 30 - i, seed=i) for i in range(7)]
        free = opened(described(model)).encode(images)
        write_graph(tmp_path / "fixed.onnx", batch=batch)
        fixed = opened(described(tmp_path / "fixed.onnx")).encode(images)
        np.testing.assert_allclose(fixed, free, atol=2e-6)


class TestWhere:
    def test_a_description_may_name_a_model_elsewhere(self, model: Path, tmp_path: Path) -> None:
        beside = opened(described(model)).contract
        for name in ("../model.onnx", str(model)):
            description = tmp_path / "sub/described.yml"
            description.parent.mkdir(exist_ok=True)
            description.write_text(yaml.safe_dump(PLAIN | {"model": name}))
            assert opened(description).contract.fingerprint == beside.fingerprint

    @pytest.mark.parametrize("weights", ["", "model.onnx", "org/model"])
    def test_anything_but_a_path_is_refused(self, weights: str) -> None:
        assert refusal(weights) == (
            f"encoder 'onnx' needs a path as `weights`, starting with ./, ../, ~ or /; got {weights!r}"
        )

    def test_missing_files_are_named(self, model: Path, tmp_path: Path) -> None:
        assert refusal("./nowhere.onnx") == "model file './nowhere.onnx' does not exist; check `weights`"
        assert "has no description; write model.yaml beside it" in refusal(model)
        (tmp_path / "lone.yaml").write_text(yaml.safe_dump(PLAIN))
        with pytest.raises(ModelUnavailableError, match=r"lone.onnx', described by .* does not exist"):
            opened(tmp_path / "lone.yaml")


class TestFingerprint:
    def test_is_of_the_file_and_what_is_described(self, model: Path, tmp_path: Path) -> None:
        first = opened(described(model)).contract
        assert first == opened(described(model)).contract
        assert len(first.weights_digest) == 64
        spelt_out = described(model, input="image", output="mean", resize="squash", mean=[0, 0, 0])
        assert opened(spelt_out).contract.fingerprint == first.fingerprint
        shutil.move(model, tmp_path / "other.onnx")
        assert opened(described(tmp_path / "other.onnx")).contract.fingerprint == first.fingerprint

    @pytest.mark.parametrize(
        "settings",
        [
            {"scale": 0.02},
            {"mean": [0, 0, 1]},
            {"channels": "BGR"},
            {"interpolation": "box"},
            {"output": "grid", "pooling": "mean"},
        ],
    )
    def test_changes_with_the_description(self, model: Path, settings: dict[str, Any]) -> None:
        before = opened(described(model)).contract.fingerprint
        assert opened(described(model, **settings)).contract.fingerprint != before

    def test_changes_with_a_weight(self, model: Path) -> None:
        before = opened(described(model)).contract.fingerprint
        graph = onnx.load(model)
        kernel = numpy_helper.to_array(graph.graph.initializer[0]).copy()
        kernel[0, 0, 0, 0] += 1e-6
        graph.graph.initializer[0].CopyFrom(numpy_helper.from_array(kernel, "kernel"))
        onnx.save(graph, model)
        assert opened(model).contract.fingerprint != before


class TestRefuses:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"sizes": [3, 3]}, "unknown key; did you mean 'size'?"),
            ({"size": [32]}, "size.1: Field required"),
            ({"size": [0, 32]}, "size.0: Input should be greater than or equal to 1"),
            ({"std": [1, 0, 1]}, "std.1: Input should be greater than 0"),
            ({"mean": [0, 0, float("nan")]}, "mean.2: Input should be a finite number"),
            ({"layout": "HWC"}, "layout: Input should be 'NCHW' or 'NHWC'"),
            ({"crop": 0.9}, "`crop` needs `resize: centre-crop`"),
            ({"dtype": "uint8"}, "a uint8 input takes pixel values as they are"),
            ({"size": [64, 32]}, "takes tensor(float) ['n', 3, 32, 32] as 'image', but is described as "),
            ({"layout": "NHWC"}, "tensor(float) ['n', 32, 32, 3]; correct size, layout or dtype"),
            ({"input": "img"}, "has the inputs 'image'; one is needed, described as 'img'"),
            ({"output": "means"}, "has no output 'means'; did you mean 'mean'?"),
        ],
    )
    def test_a_description_that_is_wrong(self, model: Path, settings: dict[str, Any], message: str) -> None:
        assert message in refusal(described(model, **settings))

    @pytest.mark.parametrize("text", ["", "[]", "a: [", "size: [1, 1]\nsize: [2, 2]", "\ufffd"])
    def test_a_description_that_is_none(self, model: Path, text: str) -> None:
        model.with_suffix(".yaml").write_text(text, encoding="utf-8")
        assert str(model.with_suffix(".yaml")) in refusal(model)

    @pytest.mark.parametrize("content", [b"", b"\xff" * 100, b"not a model", "half"])
    def test_a_damaged_model(self, model: Path, content: bytes | str, capfd: Any) -> None:
        data = model.read_bytes()
        model.write_bytes(data[: len(data) // 2] if isinstance(content, str) else content)
        assert refusal(described(model)).startswith(f"model '{model}' cannot be opened as 'onnx': ")
        assert capfd.readouterr() == ("", "")

    def test_weights_in_a_second_file(self, model: Path) -> None:
        """The digest would not see them change."""
        graph = onnx.load(model)
        onnx.save(graph, model, save_as_external_data=True, location="weights.bin", size_threshold=0)
        assert "cannot be opened as 'onnx'" in refusal(described(model))

    @pytest.mark.parametrize("spec", [{"device": "cuda"}, {"dtype": "bfloat16"}])
    def test_what_the_file_decides(self, model: Path, spec: dict[str, str]) -> None:
        assert "leave device and dtype out" in refusal(described(model), **spec)

    def test_a_vector_without_direction(self, tmp_path: Path) -> None:
        path = identity(tmp_path / "identity.onnx", ["n", 2, 2, 3], "uint8")
        path.with_suffix(".yaml").write_text("{size: [2, 2], layout: NHWC, dtype: uint8}")
        encoder = opened(path)
        with pytest.raises(ModelError, match="has no direction"):
            encoder.encode([Image.new("RGB", (2, 2), "red"), Image.new("RGB", (2, 2))])


def test_a_real_model_tells_flowers_apart(realdata: Path, tmp_path: Path) -> None:
    description = {
        "model": str(realdata / "models/mobilenet_v1_embedder.onnx"),
        "size": [224, 224],
        "layout": "NHWC",
        "dtype": "uint8",
    }
    (tmp_path / "mobilenet.yaml").write_text(yaml.safe_dump(description))
    encoder = opened(tmp_path / "mobilenet.yaml")
    vectors, labels = {}, {}
    for split in ("train", "test"):
        paths = sorted((realdata / "data/flowers12" / split).glob("*/*.jpg"))
        vectors[split] = encoder.encode([Image.open(path).convert("RGB") for path in paths])
        labels[split] = np.asarray([path.parent.name for path in paths])
    assert (vectors["train"].shape, vectors["test"].shape) == ((720, 1024), (240, 1024))
    nearest = (vectors["test"] @ vectors["train"].T).argmax(axis=1)
    assert np.mean(labels["train"][nearest] == labels["test"]) >= 0.945  # measured 227 of 240: .9458


def identity(path: Path, shape: list[Any], dtype: str) -> Path:
    """A graph that returns its input in one row."""
    kind = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT}[dtype]
    graph = helper.make_graph(
        [helper.make_node("Flatten", ["x"], ["y"])],
        "identity",
        [helper.make_tensor_value_info("x", kind, shape)],
        [helper.make_tensor_value_info("y", kind, ["n", int(np.prod(shape[1:]))])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path
