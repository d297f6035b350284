"""Detectors against the libraries they come from, called directly on the same random checkpoints."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights, fasterrcnn_resnet50_fpn
from torchvision.transforms.functional import to_tensor
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from lmm_classifier.corpus.images import open_image
from lmm_classifier.errors import ModelError, ModelUnavailableError
from lmm_classifier.models.detection import Detections, load_detector
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.steps.detect import Detect
from lmm_classifier.types import Sample
from refusals import refused
from tiny_models import write_siglip
from tiny_vision import (
    CATEGORIES,
    SIDES,
    THINGS,
    faster_rcnn_state,
    write_faster_rcnn,
    write_rt_detr,
    write_yolos,
)

Noise = Callable[..., Image.Image]
SIZES = [(60, 40), (30, 90), (96, 96), (1, 1), (2, 120), (640, 480)]
PUBLISHED = FasterRCNN_ResNet50_FPN_Weights.COCO_V1
WRITTEN = {"faster-rcnn": write_faster_rcnn, "rt-detr": write_rt_detr, "yolos": write_yolos}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    return cache(lambda name: WRITTEN[name](tmp_path_factory.mktemp("tiny") / name))


def spec(name: str, weights: str, **options: Any) -> ModelSpec:
    family = "faster-rcnn" if name == "faster-rcnn" else "objects"
    return ModelSpec(family, weights, **({} if name == "faster-rcnn" else {"dtype": "float32"}) | options)


def found_by(name: str, weights: str, image: Image.Image) -> Detections:
    [found] = load_detector(spec(name, weights)).detect([image])
    return found


def by_transformers(weights: str, image: Image.Image) -> tuple[np.ndarray, np.ndarray, tuple[str, ...]]:
    processor = AutoImageProcessor.from_pretrained(weights)
    model = AutoModelForObjectDetection.from_pretrained(weights).eval()
    with torch.no_grad():
        output = model(**processor(images=image, return_tensors="pt"))
    [found] = processor.post_process_object_detection(
        output, threshold=0.0, target_sizes=[(image.height, image.width)]
    )
    return found["boxes"].numpy(), found["scores"].numpy(), tuple(THINGS[i] for i in found["labels"])


def by_torchvision(
    state: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch, image: Image.Image, **sides: int
) -> dict[str, torch.Tensor]:
    """torchvision's own way to its published model, but for what is downloaded."""
    monkeypatch.setattr(type(PUBLISHED), "get_state_dict", lambda self, **_: state)
    model = fasterrcnn_resnet50_fpn(weights=PUBLISHED, **sides).eval()
    with torch.no_grad():
        [found] = model([to_tensor(image)])
    return found


def assert_equal(found: Detections, boxes: np.ndarray, scores: np.ndarray, labels: tuple[str, ...]) -> None:
    assert (found.boxes.dtype, found.scores.dtype) == (np.float32, np.float32)
    assert len(found.labels) > 0
    np.testing.assert_array_equal(found.boxes, boxes)
    np.testing.assert_array_equal(found.scores, scores)
    assert found.labels == labels


class TestFasterRcnn:
    @pytest.fixture
    def state(self) -> dict[str, torch.Tensor]:
        return faster_rcnn_state(len(PUBLISHED.meta["categories"]))

    @pytest.fixture
    def published(self, state: Any, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
        """What is asked of the download that answers with random weights."""
        asked: list[dict[str, Any]] = []
        answer = lambda url, **options: asked.append({"url": url, **options}) or state  # noqa: E731
        monkeypatch.setattr(torch.hub, "load_state_dict_from_url", answer)
        monkeypatch.setattr("lmm_classifier.models.faster_rcnn.HF_HUB_OFFLINE", False)
        return asked

    def test_of_torchvision_is_torchvisions(
        self, state: Any, published: Any, monkeypatch: pytest.MonkeyPatch, noise: Noise
    ) -> None:
        """At 800 to 1333 px, with the eps of 0 that torchvision gives these weights alone."""
        image = noise(80, 60)
        [found] = load_detector(ModelSpec("faster-rcnn")).detect([image])
        [asked] = published
        assert asked["url"] == PUBLISHED.url
        assert asked["check_hash"]
        assert asked["weights_only"]
        expected = by_torchvision(state, monkeypatch, image)
        labels = tuple(PUBLISHED.meta["categories"][i] for i in expected["labels"])
        assert_equal(found, expected["boxes"].numpy(), expected["scores"].numpy(), labels)

    @pytest.mark.parametrize("size", SIZES)
    def test_of_a_folder_is_torchvisions(
        self, size: tuple[int, int], weights: Any, monkeypatch: pytest.MonkeyPatch, noise: Noise
    ) -> None:
        image = noise(*size)
        monkeypatch.setitem(PUBLISHED.meta, "categories", CATEGORIES)
        expected = by_torchvision(faster_rcnn_state(len(CATEGORIES)), monkeypatch, image, **SIDES)
        labels = tuple(CATEGORIES[i] for i in expected["labels"])
        found = found_by("faster-rcnn", weights("faster-rcnn"), image)
        assert_equal(found, expected["boxes"].numpy(), expected["scores"].numpy(), labels)

    @pytest.mark.parametrize(("size", "shown"), [((1, 2000), (32, 2000)), ((2000, 1), (2000, 32))])
    def test_a_sliver_is_stretched_and_its_boxes_back(
        self, size: Any, shown: Any, weights: Any, noise: Noise
    ) -> None:
        folder = weights("faster-rcnn")
        found = found_by("faster-rcnn", folder, noise(*size))
        wide = found_by("faster-rcnn", folder, noise(*size).resize(shown))
        factors = np.asarray([*np.divide(size, shown), *np.divide(size, shown)])
        np.testing.assert_allclose(found.boxes, wide.boxes * factors, rtol=1e-6)
        assert (found.boxes[:, 2:] <= size).all()

    @pytest.mark.parametrize(
        ("settings", "says"),
        [
            ({}, "must hold `categories`"),
            ({"categories": "person"}, "must hold `categories`"),
            ({"categories": ["background"]}, "must hold `categories`"),
            ([], "must hold `categories`"),
            ({"categories": [*CATEGORIES, "extra"]}, "size mismatch|cannot be opened"),
            ({"categories": CATEGORIES, "min_size": "big"}, "'min_size' must be a positive number"),
            ({"categories": CATEGORIES, "max_size": -1}, "'max_size' must be a positive number"),
            ({"categories": CATEGORIES, "num_classes": 4}, "unknown key 'num_classes'"),
        ],
    )
    def test_refuses_settings(self, settings: Any, says: str, weights: Any, tmp_path: Path) -> None:
        (tmp_path / "model.safetensors").symlink_to(Path(weights("faster-rcnn")) / "model.safetensors")
        (tmp_path / "config.json").write_text(json.dumps(settings))
        assert refused(load_detector, spec("faster-rcnn", str(tmp_path)), says)

    @pytest.mark.parametrize("gone", ["model.safetensors", "config.json"])
    def test_a_missing_file(self, gone: str, weights: Any, tmp_path: Path) -> None:
        for name in {"model.safetensors", "config.json"} - {gone}:
            (tmp_path / name).symlink_to(Path(weights("faster-rcnn")) / name)
        assert refused(
            load_detector,
            spec("faster-rcnn", str(tmp_path)),
            "must be a local folder with config.json and model.safetensors",
        )

    def test_weights_of_something_else(self, tmp_path: Path, weights: Any) -> None:
        write_siglip(tmp_path)
        settings = Path(weights("faster-rcnn")) / "config.json"
        (tmp_path / "config.json").write_bytes(settings.read_bytes())
        assert refused(
            load_detector, spec("faster-rcnn", str(tmp_path)), "lacks [0-9]+ weights of its architecture"
        )

    def test_other_arithmetic_and_hub_ids(self) -> None:
        with pytest.raises(ModelError, match="computes in float32"):
            load_detector(ModelSpec("faster-rcnn", dtype="bfloat16"))
        assert refused(load_detector, spec("faster-rcnn", "some/model"), "must be a local folder")


@pytest.mark.parametrize("name", ["rt-detr", "yolos"])
class TestObjects:
    @pytest.mark.parametrize("size", SIZES)
    def test_is_what_transformers_makes_of_it(self, name: str, size: Any, weights: Any, noise: Noise) -> None:
        image, folder = noise(*size), weights(name)
        assert_equal(found_by(name, folder, image), *by_transformers(folder, image))

    def test_coarse_arithmetic_keeps_boxes_on_the_pixel_grid(
        self, name: str, weights: Any, noise: Noise
    ) -> None:
        image = noise(4000, 3000)
        [found] = load_detector(spec(name, weights(name), dtype="bfloat16")).detect([image])
        steps = found.boxes[:, 0] % 1
        assert (steps != 0).any()  # in bfloat16, coordinates above 256 px have no fractions

    def test_a_checkpoint_of_another_kind(self, name: str, tmp_path: Path, weights: Any) -> None:
        write_siglip(tmp_path / "siglip")
        assert refused(load_detector, spec(name, str(tmp_path / "siglip")), "is no object detector")
        write_siglip(tmp_path / "mixed")
        shutil.copy(Path(weights(name)) / "preprocessor_config.json", tmp_path / "mixed")
        assert refused(load_detector, spec(name, str(tmp_path / "mixed")), "cannot be opened as 'objects'")

    @pytest.mark.parametrize("gone", ["model.safetensors", "config.json", "preprocessor_config.json"])
    def test_a_missing_file(self, name: str, gone: str, weights: Any, tmp_path: Path) -> None:
        shutil.copytree(weights(name), tmp_path / "copy")
        (tmp_path / "copy" / gone).unlink()
        assert refused(load_detector, spec(name, str(tmp_path / "copy")), "cannot be opened as 'objects'")


def test_rt_detr_sees_any_shape_as_its_processor_says(weights: Any, noise: Noise) -> None:
    """Stretched to a square, rescaled to 0..1, neither normalised nor padded."""
    for size in [(1, 2000), (2000, 1)]:
        image = noise(*size)
        assert_equal(
            found_by("rt-detr", weights("rt-detr"), image), *by_transformers(weights("rt-detr"), image)
        )
    processor = load_detector(spec("rt-detr", weights("rt-detr")))._processor
    image = noise(60, 40)
    pixels = processor(images=image, return_tensors="np")["pixel_values"][0]
    stretched = np.asarray(image.resize((64, 64), Image.Resampling.BILINEAR), np.float32) / 255
    assert pixels.shape == (3, 64, 64)
    np.testing.assert_allclose(pixels.transpose(1, 2, 0), stretched, atol=2 / 255)


@pytest.mark.parametrize("name", WRITTEN)
class TestEvery:
    @pytest.mark.parametrize("size", [(1, 2000), (2000, 1), (1, 1)])
    def test_takes_slivers(self, name: str, size: tuple[int, int], weights: Any, noise: Noise) -> None:
        found = found_by(name, weights(name), noise(*size))
        assert np.isfinite(found.boxes).all()
        [sample] = Detect(spec(name, weights(name)), min_score=0.0).run(
            [Sample.from_image("s", noise(*size))]
        )
        for region in sample.regions[1:]:
            x0, y0, x1, y1 = region.box
            assert 0 <= x0 < x1 <= size[0]
            assert 0 <= y0 < y1 <= size[1]

    def test_answers_do_not_depend_on_the_batch(self, name: str, weights: Any, noise: Noise) -> None:
        images = [noise(*size, seed=i) for i, size in enumerate(SIZES)]
        together = load_detector(spec(name, weights(name))).detect(images)
        for image, found in zip(images, together, strict=True):
            alone = found_by(name, weights(name), image)
            assert_equal(found, alone.boxes, alone.scores, alone.labels)

    def test_a_rotated_photo_is_seen_upright(self, name: str, weights: Any, noise: Noise) -> None:
        upright = noise(90, 50)
        lying, exif = upright.transpose(Image.Transpose.ROTATE_90), Image.Exif()
        exif[0x0112] = 6  # the camera was turned: show it rotated by 270 degrees counter-clockwise
        file = io.BytesIO()
        lying.save(file, "PNG", exif=exif)
        image = open_image(file.getvalue())
        assert image.size == (90, 50)
        alone, turned = (found_by(name, weights(name), i) for i in (upright, image))
        assert_equal(turned, alone.boxes, alone.scores, alone.labels)

    def test_a_folder_that_is_not_there(self, name: str) -> None:
        assert refused(load_detector, spec(name, "./nowhere"), "nowhere")

    def test_opening_and_asking_says_nothing(
        self, name: str, weights: Any, noise: Noise, said: Callable[[], str]
    ) -> None:
        folder = weights(name)
        said()  # to write it is not silent
        found_by(name, folder, noise(20, 20))
        assert said() == ""


def test_the_default_is_not_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelUnavailableError, match="'PekingU/rtdetr_v2_r18vd' is neither on this machine"):
        load_detector(ModelSpec("objects"))
