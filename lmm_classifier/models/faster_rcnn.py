"""Faster R-CNN with a ResNet-50 FPN backbone, of torchvision: persons and the other 79 things of COCO."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from huggingface_hub.constants import HF_HUB_OFFLINE
from PIL import Image
from safetensors.torch import load_file
from torchvision.models.detection import FasterRCNN_ResNet50_FPN_Weights, fasterrcnn_resnet50_fpn
from torchvision.transforms.functional import to_tensor

from lmm_classifier.errors import ModelError, ModelUnavailableError
from lmm_classifier.models.base import ModelSpec, refuse_compile
from lmm_classifier.models.detection import Detections
from lmm_classifier.models.forward import running
from lmm_classifier.models.pretrained import for_inference, is_local, local_path, opening, refuse_missing

PUBLISHED = FasterRCNN_ResNet50_FPN_Weights.COCO_V1
FILES = ("config.json", "model.safetensors")
SETTINGS = frozenset({"categories", "min_size", "max_size"})


class FasterRcnnDetector:
    """Boxes with a label and a score, after the model's own non-maximum suppression.

    Weights are left out (those torchvision publishes, from download.pytorch.org, checked by their hash), or
    a local folder with `model.safetensors` and `config.json`: `categories` (row 0 is the background) and,
    if wanted, `min_size` and `max_size`, the sides in px that a photo is scaled to (800 and 1333).
    """

    min_score: ClassVar[float] = 0.05
    """The floor of the model itself, as in image_embed, which took the best box however unsure."""

    def __init__(self, spec: ModelSpec) -> None:
        if spec.dtype not in ("auto", "float32"):
            raise ModelError("detector 'faster-rcnn' computes in float32; leave dtype out")
        refuse_compile(spec)
        self._weights = spec.weights or "torchvision COCO_V1"
        settings, state = self._published(spec) if not spec.weights else self._local(spec)
        categories = settings.pop("categories")
        model = fasterrcnn_resnet50_fpn(
            weights=None, weights_backbone=None, num_classes=len(categories), **settings
        )
        with opening(spec, self._weights):
            report = model.load_state_dict(state, strict=False)
        refuse_missing(self._weights, report.missing_keys)
        self._model = for_inference(model, spec, self._weights)
        self._categories: list[str] = categories

    def _published(self, spec: ModelSpec) -> tuple[dict[str, Any], Any]:
        cached = Path(torch.hub.get_dir(), "checkpoints", PUBLISHED.url.rpartition("/")[2])
        if HF_HUB_OFFLINE and not cached.is_file():
            raise ModelUnavailableError(
                f"model {self._weights!r} is not on this machine ({cached}), and HF_HUB_OFFLINE is set: "
                "connect once so that it can be downloaded, or set `weights` to a local folder"
            )
        with opening(spec, self._weights):
            state = torch.hub.load_state_dict_from_url(
                PUBLISHED.url, map_location="cpu", progress=False, check_hash=True, weights_only=True
            )
        return {"categories": list(PUBLISHED.meta["categories"])}, state

    def _local(self, spec: ModelSpec) -> tuple[dict[str, Any], Any]:
        folder = local_path(spec.weights)
        if not is_local(spec.weights) or not all((folder / name).is_file() for name in FILES):
            raise ModelError(f"model {spec.weights!r} must be a local folder with {' and '.join(FILES)}")
        with opening(spec, self._weights):
            settings = _settings(folder / FILES[0])
            return settings, load_file(folder / FILES[1])

    def detect(self, images: Sequence[Image.Image]) -> list[Detections]:
        # One by one: torchvision pads the images of a batch to one size, which moves their boxes.
        return [self._found(image) for image in images]

    def _found(self, image: Image.Image) -> Detections:
        with running(self._weights, "1 image"):
            [found] = self._model([to_tensor(image).to(next(self._model.parameters()).device)])
        return Detections(
            np.asarray(found["boxes"].cpu().numpy(), np.float32),
            np.asarray(found["scores"].cpu().numpy(), np.float32),
            tuple(self._categories[label] for label in found["labels"].tolist()),
        )


def _settings(path: Path) -> dict[str, Any]:
    body = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(body, dict) or not isinstance(body.get("categories"), list) or body.keys() - SETTINGS:
        raise ModelError(f"{path} must hold `categories`, and may hold `min_size` and `max_size`")
    return body
