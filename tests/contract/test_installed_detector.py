"""A detector of another package, a real YOLOX-nano, really installed; needs LMM_CLASSIFIER_REALDATA."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.ops import box_iou

from installed import install, run_with

PERSON, MIN_SCORE, MIN_IOU = "0", 0.25, 0.5
CODE = '''
"""YOLOX as an ONNX file: a grid of undecoded boxes at strides 8, 16 and 32."""

import numpy as np
import onnxruntime
import torch
from PIL import Image
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights
from torchvision.ops import batched_nms

from lmm_classifier.models.detection import Detections

SIDE, GREY, STRIDES = 416, 114, (8, 16, 32)
FLOOR, NMS_IOU = 0.01, 0.45  # as YOLOX's own tools/eval.py has them, but for a floor of .001
COCO = FasterRCNN_ResNet50_FPN_Weights.COCO_V1.meta["categories"]
NAMES = [name for name in COCO[1:] if name != "N/A"]


class YoloxDetector:
    min_score = 0.25

    def __init__(self, spec):
        path = spec.weights or DEFAULT
        self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        grids = [np.indices((SIDE // s, SIDE // s))[::-1].reshape(2, -1).T for s in STRIDES]
        self._corner = np.concatenate(grids)
        self._stride = np.concatenate([np.full((len(g), 1), s) for g, s in zip(grids, STRIDES)])

    def detect(self, images):
        return [self._found(image) for image in images]

    def _found(self, image):
        scale = min(SIDE / image.width, SIDE / image.height)
        size = max(int(image.width * scale), 1), max(int(image.height * scale), 1)
        shown = Image.new("RGB", (SIDE, SIDE), (GREY,) * 3)
        shown.paste(image.resize(size, Image.Resampling.BILINEAR))
        pixels = np.asarray(shown, np.float32)[..., ::-1].transpose(2, 0, 1)[None]
        [[rows]] = self._session.run(["output"], {"images": np.ascontiguousarray(pixels)})
        centre = (rows[:, :2] + self._corner) * self._stride
        half = np.exp(rows[:, 2:4]) * self._stride / 2
        boxes = torch.tensor(np.concatenate([centre - half, centre + half], axis=1) / scale).float()
        scores, labels = torch.tensor(rows[:, 4:5] * rows[:, 5:]).max(dim=1)
        sure = scores >= FLOOR
        boxes, scores, labels = boxes[sure], scores[sure], labels[sure]
        kept = batched_nms(boxes, scores, labels, NMS_IOU)
        return Detections(
            boxes[kept].numpy(), scores[kept].numpy(), tuple(NAMES[i] for i in labels[kept].tolist())
        )
'''


@pytest.fixture(scope="module")
def site(realdata: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that pip installed the package into, with default weights for the battery."""
    code = f"DEFAULT = {str(realdata / 'models/yolox_nano.onnx')!r}\n{CODE}"
    return install(tmp_path_factory.mktemp("plugin"), "detector", "yolox-nano", "YoloxDetector", code)


def persons_of(labels: Path, width: int, height: int) -> torch.Tensor:
    """Boxes (n, 4) in pixels of a file of lines `class centre-x centre-y width height`, relative."""
    rows = [line.split() for line in labels.read_text("utf-8").splitlines()]
    wanted = np.asarray([row[1:] for row in rows if row[0] == PERSON], np.float64).reshape(-1, 4)
    centre, half = wanted[:, :2], wanted[:, 2:] / 2
    boxes = np.concatenate([centre - half, centre + half], axis=1) * [width, height, width, height]
    return torch.tensor(boxes)


def matched(found: torch.Tensor, wanted: torch.Tensor) -> int:
    """How many boxes, best first, take a wanted one that no better box has taken."""
    free, overlap = list(range(len(wanted))), box_iou(found, wanted)
    hits = 0
    for row in overlap:
        if free and row[free].max() >= MIN_IOU:
            free.remove(free[int(row[free].argmax())])
            hits += 1
    return hits


@pytest.mark.parametrize(
    ("found", "hits"),
    [
        ([(0, 0, 10, 10), (0, 0, 9, 10)], 1),
        ([(0, 0, 10, 10), (20, 0, 30, 10)], 2),
        ([(0, 0, 10, 4)], 0),
        ([], 0),
    ],
)
def test_each_person_is_found_once(found: Sequence[tuple[int, ...]], hits: int) -> None:
    """The ruler itself, by hand."""
    wanted = torch.tensor([(0.0, 0, 10, 10), (20, 0, 30, 10)])
    assert matched(torch.tensor(found, dtype=torch.float32).reshape(-1, 4), wanted) == hits


def test_it_finds_persons_in_the_street(
    site: Path, realdata: Path, record_property: pytest.RecordProperty
) -> None:
    folder = realdata / "data/coco128-val"
    photos = sorted((folder / "images").glob("*.jpg"))
    model = ("-p", "model.family=yolox-nano", "-p", f"model.weights={realdata}/models/yolox_nano.onnx")
    options = (*model, "-p", "labels=[person]", "-p", f"min_score={MIN_SCORE}")
    paths = (str(photo) for photo in photos)
    result = run_with(site, realdata, "-m", "lmm_classifier", "run", "detect", *paths, *options)
    assert result.returncode == 0, result.stderr
    answers = [json.loads(line) for line in result.stdout.splitlines()]
    assert [answer["source"] for answer in answers] == [str(photo) for photo in photos]
    hits = n_found = n_wanted = 0
    for photo, answer in zip(photos, answers, strict=True):
        regions = [region for region in answer["regions"] if region["kind"] == "person"]
        assert [r["score"] for r in regions] == sorted((r["score"] for r in regions), reverse=True)
        found = torch.tensor([r["box"] for r in regions], dtype=torch.float64).reshape(-1, 4)
        wanted = persons_of(folder / f"labels/{photo.stem}.txt", answer["width"], answer["height"])
        hits += matched(found, wanted)
        n_found += len(found)
        n_wanted += len(wanted)
    record_property("precision", hits / n_found)
    record_property("recall", hits / n_wanted)
    assert len(photos) == 128
    assert hits / n_found >= 0.65  # measured .698
    assert hits / n_wanted >= 0.58  # measured .609


def test_the_contract_battery_finds_it(site: Path) -> None:
    battery = str(Path(__file__).with_name("test_detectors.py"))
    result = run_with(
        site,
        Path(__file__).parents[2],
        "-m",
        "pytest",
        "-q",
        "-n",
        "0",
        "-p",
        "no:cacheprovider",
        "-k",
        "yolox",
        battery,
    )
    assert result.returncode == 0, result.stdout
    assert "3 passed" in result.stdout
