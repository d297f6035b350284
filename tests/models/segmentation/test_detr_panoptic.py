"""DETR panoptic against transformers."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from transformers import DetrImageProcessor

from lmm_classifier.errors import ModelError, ModelUnavailableError
from lmm_classifier.masks import tight_box
from lmm_classifier.models import loading
from lmm_classifier.models.runtime import onnx_session
from lmm_classifier.models.segmentation import detr_panoptic_onnx
from lmm_classifier.models.segmentation.base import load_panoptic, segmented
from lmm_classifier.models.segmentation.coco_panoptic import class_names, coco_panoptic, things
from lmm_classifier.models.segmentation.detr_panoptic_onnx import divided, input_size
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.steps.segment_panoptic import SegmentPanoptic
from lmm_classifier.types import Sample
from segmentation_graphs import write_detr

PROCESSOR = DetrImageProcessor()
NO_OBJECT = 250
RED, BLUE = (255, 0, 0), (0, 0, 255)


def sure(*classes: int, width: int = 251, logit: float = 9.0) -> np.ndarray:
    logits = np.zeros((len(classes), width), np.float32)
    for row, label in zip(logits, classes, strict=True):
        row[label] = logit
    return logits


def red_and_blue(folder: Path, classes: tuple[int, ...] = (1, 187), **options: Any) -> str:
    """The first query is what is red, the second what is blue; a third nothing."""
    logits = options.pop("logits", sure(*classes, NO_OBJECT))
    kernels = np.asarray([[4, 0, -4], [-4, 0, 4], [9, 9, 9]])[: len(logits)]
    return write_detr(folder, logits, kernels, np.zeros(len(logits)), **options)


def picture(size: tuple[int, int], box: tuple[int, int, int, int]) -> Image.Image:
    image = Image.new("RGB", size, BLUE)
    image.paste(RED, box)
    return image


def refusal(weights: str, error: type[Exception] = ModelError) -> str:
    loading.reset()
    with pytest.raises(error) as caught:
        load_panoptic(ModelSpec("detr-panoptic", weights))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def random_answer(seed: int, queries: int = 25, classes: int = 20) -> tuple[np.ndarray, np.ndarray]:
    """Logits and soft blobs such as a model gives, many of them overlapping."""
    random = np.random.default_rng(seed)
    logits = random.normal(size=(queries, classes + 1)).astype(np.float32)
    logits[np.arange(queries), random.integers(0, classes + 1, queries)] += random.uniform(2, 9, queries)
    y, x = np.mgrid[:25, :34].astype(np.float32)
    centre, radius = random.uniform(0, 30, (2, queries, 1, 1)), random.uniform(2, 5, (queries, 1, 1))
    blobs = radius - np.hypot(x - centre[0], y - centre[1]) + random.normal(size=(queries, 25, 34)) * 0.3
    return logits.astype(np.float32), blobs.astype(np.float32)


def reference(
    logits: np.ndarray, masks: np.ndarray, size: tuple[int, int], threshold: float = 0.5
) -> list[tuple[np.ndarray, int, float]]:
    output = SimpleNamespace(logits=torch.tensor(logits)[None], pred_masks=torch.tensor(masks)[None])
    [found] = PROCESSOR.post_process_panoptic_segmentation(
        output, threshold=threshold, label_ids_to_fuse=set(), target_sizes=[size[::-1]]
    )
    owner = found["segmentation"].numpy()
    return [(owner == info["id"], info["label_id"], info["score"]) for info in found["segments_info"]]


class TestPostProcessing:
    @pytest.mark.parametrize("seed", range(12))
    @pytest.mark.parametrize("size", [(136, 100), (61, 200), (34, 25)])
    def test_segments_are_those_of_transformers(self, seed: int, size: tuple[int, int]) -> None:
        logits, masks = random_answer(seed)
        expected = reference(logits, masks, size)
        found = divided(logits, masks, size, 0.5, frozenset())
        assert len(found) == len(expected) > 0
        for (mask, label, score), (mask_, label_, score_) in zip(found, expected, strict=True):
            assert (label, score) == (label_, pytest.approx(score_, abs=1e-6))
            np.testing.assert_array_equal(mask.numpy(), mask_)
        assert sum(mask.numpy().astype(int) for mask, _, _ in found).max() == 1  # no pixel belongs to two

    @pytest.mark.parametrize("seed", range(6))
    def test_stuff_of_one_label_is_fused(self, seed: int) -> None:
        """The union of transformers' separate segments: its own fusing gives one number to two of them."""
        logits, masks = random_answer(seed, classes=5)
        apart = reference(logits, masks, (136, 100))
        fused = frozenset({0, 1, 2, 3})
        found = divided(logits, masks, (136, 100), 0.5, fused)
        times = Counter(label for _, label, _ in apart)
        assert any(times[label] > 1 for label in fused)
        assert Counter(label for _, label, _ in found) == {
            label: 1 if label in fused else n for label, n in times.items()
        }
        for mask, label, score in found:
            if label in fused:
                parts = [(m, s) for m, each, s in apart if each == label]
                np.testing.assert_array_equal(mask.numpy(), np.logical_or.reduce([m for m, _ in parts]))
                assert score == pytest.approx(max(s for _, s in parts), abs=1e-6)

    def test_no_object_is_the_last_class_however_many_there_are(self) -> None:
        for classes in (7, 133, 250):
            logits = sure(0, classes, classes - 1, width=classes + 1)
            masks = np.full((3, 4, 4), -9, np.float32)
            masks[0, :2], masks[1], masks[2, 2:] = 9, 20, 9
            labels = [label for _, label, _ in divided(logits, masks, (8, 8), 0.5, frozenset())]
            assert labels == [0, classes - 1]

    def test_a_score_of_just_the_minimum_is_kept_and_nothing_is_no_error(self) -> None:
        logits = np.asarray([[0, -np.inf, 0]], np.float32)  # one half, exactly
        masks = np.full((1, 2, 2), 90, np.float32)
        assert divided(logits, masks, (4, 4), 0.5, frozenset())[0][2] == 0.5
        assert divided(logits, masks, (4, 4), 0.51, frozenset()) == []


class TestModel:
    @pytest.mark.parametrize("size", [(640, 480), (300, 500), (900, 90)])
    def test_regions_lie_where_the_colours_are_surest_first(
        self, tmp_path: Path, size: tuple[int, int]
    ) -> None:
        width, height = size
        box = (width // 2, height // 2, width, height)
        logits = np.concatenate([sure(1, logit=7.0), sure(187, NO_OBJECT)])
        spec = ModelSpec("detr-panoptic", red_and_blue(tmp_path, logits=logits))
        sample = Sample.from_image("photo", picture(size, box))
        [found] = SegmentPanoptic(spec).run([sample])
        sky, person = found.regions[1:]
        assert (sky.kind, person.kind) == (coco_panoptic()[187][0], "person")
        assert sky.score > person.score > 0.5
        assert (sky.source, person.source) == ("segment_panoptic",) * 2
        truth = np.asarray(sample.image)[..., 0] > 0
        assert sky.mask is not None
        assert person.mask is not None
        assert not (sky.mask & person.mask).any()
        assert iou(person.mask, truth) > 0.97
        assert iou(sky.mask, ~truth) > 0.97
        assert person.box == tight_box(person.mask)
        assert np.abs(np.subtract(person.box, box)).max() <= 3
        [strict] = SegmentPanoptic(spec, min_score=0.9).run([sample])
        assert [region.kind for region in strict.regions[1:]] == [sky.kind]
        [nothing] = SegmentPanoptic(spec, min_score=0.9999).run([sample])
        assert nothing.regions == sample.regions

    def test_the_default_weights_are_named_and_another_file_may_be(self, tmp_path: Path) -> None:
        assert detr_panoptic_onnx.DEFAULT_WEIGHTS == "Xenova/detr-resnet-50-panoptic"
        assert detr_panoptic_onnx.FILE == "onnx/model.onnx"
        assert "Xenova/detr-resnet-50-panoptic" in refusal("", ModelUnavailableError)
        weights = red_and_blue(tmp_path, file="onnx/model_quantized.onnx")
        assert "has no file 'onnx/model.onnx'" in refusal(weights, ModelUnavailableError)
        load_panoptic(ModelSpec("detr-panoptic", f"{weights}#onnx/model_quantized.onnx"))

    @pytest.mark.parametrize("size", [(640, 480), (480, 640), (1000, 200), (77, 99), (1200, 800)])
    def test_what_the_model_is_given_is_what_transformers_makes(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        noise: Callable[..., Image.Image],
        size: tuple[int, int],
    ) -> None:
        fed: list[dict[str, Any]] = []
        run = onnx_session.run_session

        def recording(session: Any, outputs: Any, inputs: Any, weights: str, what: str) -> Any:
            fed.append(dict(inputs))
            return run(session, outputs, inputs, weights, what)

        monkeypatch.setattr(onnx_session, "run_session", recording)
        image = noise(*size)
        segmented(ModelSpec("detr-panoptic", red_and_blue(tmp_path)), [image], 0.5, True)
        [inputs] = fed
        expected = PROCESSOR(image, return_tensors="np")["pixel_values"]
        assert inputs["pixel_values"].shape == expected.shape
        assert max(expected.shape) <= 1333
        assert np.abs(inputs["pixel_values"] - expected).max() <= 1.01 / 255 / 0.224  # one level
        assert (inputs["pixel_mask"].dtype, inputs["pixel_mask"].shape) == (np.int64, (1, 64, 64))
        assert (inputs["pixel_mask"] == 1).all()

    @pytest.mark.parametrize("size", [(1, 2000), (2000, 1), (1, 1), (30000, 3)])
    def test_a_long_strip_stays_within_the_largest_input(self, tmp_path: Path, size: tuple[int, int]) -> None:
        assert max(input_size(size)) <= 1333
        assert min(input_size(size)) >= 1
        weights = red_and_blue(tmp_path)
        [found] = segmented(ModelSpec("detr-panoptic", weights), [Image.new("RGB", size, RED)], 0.5, True)
        assert {segment.mask.shape for segment in found} <= {size[::-1]}

    def test_outputs_are_bound_by_name(self, tmp_path: Path) -> None:
        weights = red_and_blue(tmp_path / "a", reverse=True)
        image = picture((64, 64), (0, 0, 32, 64))
        found = segmented(ModelSpec("detr-panoptic", weights), [image], 0.5, True)[0]
        assert [segment.label for segment in found] == ["person", coco_panoptic()[187][0]]
        model = onnx.load(tmp_path / "a/onnx/model.onnx")
        model.graph.output[0].name = model.graph.node[1].output[0] = "masks"
        (tmp_path / "c/onnx").mkdir(parents=True)
        onnx.save(model, tmp_path / "c/onnx/model.onnx")
        assert "has the outputs masks, pred_boxes, logits; expected are logits, pred_boxes, pred_masks" in (
            refusal(str(tmp_path / "c"))
        )
        refused = red_and_blue(tmp_path / "b", pixel_mask=["batch_size", 32, 32])
        assert "input 'pixel_mask' is tensor(int64) ['batch_size', 32, 32]; expected is tensor" in refusal(
            refused
        )


class TestLabels:
    def test_coco_has_133_classes(self, realdata: Path) -> None:
        rows = json.loads((realdata / "data/panoptic_coco_categories.json").read_text())
        assert coco_panoptic() == {row["id"]: (row["name"], row["isthing"] == 1) for row in rows}
        assert Counter(thing for _, thing in coco_panoptic().values()) == {True: 80, False: 53}

    def test_names_are_the_checkpoints_and_for_placeholders_cocos_with_a_warning(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        given = {i: name for i, (name, _) in coco_panoptic().items() if i < 184}
        with caplog.at_level(logging.WARNING):
            names = class_names({**given, 184: "LABEL_184", 199: "LABEL_199", 0: "N/A"}, 250, "some/model")
        assert [r.getMessage() for r in caplog.records] == [
            "model 'some/model' has no names for 17 classes: COCO's are taken"  # 184 to 200
        ]
        assert (names[0], names[1], names[184]) == ("N/A", "person", coco_panoptic()[184][0])
        assert (names[12], names[249]) == ("class_12", "class_249")  # gaps of COCO's numbers
        assert (things(names)[1], things(names)[184], things(names)[0]) == (True, False, None)

    def test_another_taxonomy_never_gets_cocos_names(self, caplog: pytest.LogCaptureFixture) -> None:
        names = class_names({0: "cat", 1: "LABEL_1"}, 3, "some/model")
        assert names == ("cat", "class_1", "class_2")
        assert "has no names for 2 of its 3 classes" in caplog.text
        assert things(names) == (None, None, None)

    def test_names_are_those_of_config_json(self, tmp_path: Path) -> None:
        names = {1: "somebody", 187: "something"}
        weights = red_and_blue(tmp_path / "a", id2label=names)
        image = picture((64, 64), (0, 0, 32, 64))
        found = segmented(ModelSpec("detr-panoptic", weights), [image], 0.5, True)[0]
        assert [(s.label, s.is_thing) for s in found] == [("somebody", None), ("something", None)]
        (tmp_path / "a/config.json").write_text('{"id2label": [1]}')
        loading.reset()
        assert "config.json without a usable id2label" in refusal(weights)


def iou(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())
