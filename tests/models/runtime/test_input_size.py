"""How many pixels each family looks at, and that fewer decoded ones make no difference to it."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from transformers import Siglip2ImageProcessor
from transformers.models.siglip2.image_processing_siglip2 import get_image_size_for_max_num_patches

from lmm_classifier import registry
from lmm_classifier.corpus.images import open_image
from lmm_classifier.errors import ModelError
from lmm_classifier.models.base import input_size_of
from lmm_classifier.models.loading import load_encoder
from lmm_classifier.models.runtime.resizing import MAX_PIXELS
from lmm_classifier.models.spec import ModelSpec
from tiny_models import write_siglip2

Tiny = Callable[[str], str]
SIDES = {  # what the writers in tiny_models.py ask for
    "siglip": 32,
    "clip": 32,
    "dinov2": 36,
    "dinov2-timm": 28,
    "dinov3": 32,
    "dinov3-patch": 32,
    "onnx": math.ceil(32 / 0.875),
    "descriptor": 256,
}


@pytest.fixture(scope="module")
def photo() -> bytes:
    """12 megapixels of soft shapes, sharp edges and grain, as JPEG."""
    random = np.random.default_rng(0)
    soft = Image.fromarray(random.integers(0, 256, (6, 8, 3), dtype=np.uint8)).resize((4000, 3000))
    for _ in range(30):
        x, y, w, h = random.integers(0, 3000, 4)
        soft.paste(tuple(random.integers(0, 256, 3).tolist()), (x, y, x + w // 4, y + h // 4))
    grain = random.normal(0, 6, (3000, 4000, 1))
    file = io.BytesIO()
    Image.fromarray((np.asarray(soft) + grain).clip(0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


@pytest.mark.parametrize("family", [*SIDES, "siglip2"])
def test_a_photo_decoded_at_reduced_size_has_the_same_vector(
    family: str, photo: bytes, tiny: Tiny, tmp_path: Path
) -> None:
    if family == "siglip2":
        spec = ModelSpec("siglip", write_siglip2(tmp_path / "siglip2"), dtype="float32")
    else:
        spec = ModelSpec(family, "" if family == "descriptor" else tiny(family), dtype="float32")
    encoder = load_encoder(spec)
    reduced, full = open_image(photo, target_size=input_size_of(encoder)), open_image(photo)
    assert reduced.size == (500, 375)
    assert full.size == (4000, 3000)
    one, other = encoder.encode([reduced])[0], encoder.encode([full])[0]
    # In flat parts the descriptor sees the direction of the grain, as it would in any two exposures.
    assert one @ other >= (0.997 if family == "descriptor" else 0.999)


@pytest.mark.parametrize("family", SIDES)
def test_is_what_the_preprocessing_scales_to(family: str, tiny: Tiny) -> None:
    weights = "" if family == "descriptor" else tiny(family)
    assert input_size_of(load_encoder(ModelSpec(family, weights))) == SIDES[family]


@pytest.mark.parametrize("patches", [1, 16, 17, 100, 256, 1000])
@pytest.mark.parametrize("aspect", [1, 1.05, 4 / 3, 3, 10, 40, 3000])
def test_of_native_aspect_ratio_never_asks_for_more(
    patches: int, aspect: float, tmp_path: Path, siglip2_folder: Path
) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((siglip2_folder / name).read_bytes())
    Siglip2ImageProcessor(patch_size=8, max_num_patches=patches).save_pretrained(tmp_path)
    size = input_size_of(load_encoder(ModelSpec("siglip", str(tmp_path))))
    assert size is not None
    for width, height in ((round(size * aspect), size), (size, round(size * aspect))):
        shown = get_image_size_for_max_num_patches(height, width, patch_size=8, max_num_patches=patches)
        assert shown[0] <= height
        assert shown[1] <= width


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, 48),
        ({"resize": "centre-crop", "crop": 0.5}, 96),
        ({"interpolation": "nearest"}, None),
    ],
)
def test_of_onnx_follows_the_description(
    settings: dict[str, Any], expected: int | None, tmp_path: Path
) -> None:
    from onnx import TensorProto, helper

    value, shape = helper.make_tensor_value_info, ["n", 3, 32, 48]
    graph = helper.make_graph(
        [helper.make_node("ReduceMean", ["image"], ["mean"], axes=[2, 3], keepdims=0)],
        "mean",
        [value("image", TensorProto.FLOAT, shape)],
        [value("mean", TensorProto.FLOAT, ["n", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({"size": [32, 48], "mean": [-1, -1, -1], **settings}))
    assert input_size_of(load_encoder(ModelSpec("onnx", str(tmp_path / "model.onnx")))) == expected


@pytest.mark.parametrize(
    "change",
    [{"do_resize": False}, {"resample": 0}, {"size": {"longest_edge": 32}}],
)
def test_is_unknown_where_the_shorter_side_is(change: dict[str, Any], tiny: Tiny, tmp_path: Path) -> None:
    import json
    import shutil

    folder = Path(shutil.copytree(tiny("dinov2"), tmp_path / "dinov2"))
    path = folder / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert input_size_of(load_encoder(ModelSpec("dinov2", str(folder)))) is None


def test_of_a_chooser_is_known_before_it_is_opened() -> None:
    size = input_size_of(registry.resolve("chooser", "qwen-vl"))
    assert size is not None
    assert (size - 1) ** 2 <= MAX_PIXELS < size**2
    assert input_size_of(registry.resolve("chooser", "fake")) is None


def test_of_models_that_do_not_say_is_all_and_nonsense_is_refused() -> None:
    assert input_size_of(object()) is None
    for nonsense in (0, -1, 224.5, "224"):
        encoder = type("Odd", (), {"input_size": nonsense})()
        with pytest.raises(ModelError, match="must be a positive number of pixels or None"):
            input_size_of(encoder)
