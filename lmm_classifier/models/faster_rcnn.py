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
from torchvision.models.detection import FasterRCNN, FasterRCNN_ResNet50_FPN_Weights
from torchvision.models.detection.backbone_utils import resnet_fpn_backbone
from torchvision.ops import FrozenBatchNorm2d
from torchvision.transforms.functional import to_tensor

from lmm_classifier.errors import ModelError, ModelUnavailableError
from lmm_classifier.models.detection import Detections
from lmm_classifier.models.runtime.inference import running
from lmm_classifier.models.runtime.options import refuse_untaken
from lmm_classifier.models.runtime.pretrained import (
    cache_of,
    for_inference,
    is_local,
    local_path,
    opening,
    refuse_missing,
)
from lmm_classifier.models.runtime.resizing import widened
from lmm_classifier.models.spec import ModelSpec

PUBLISHED = FasterRCNN_ResNet50_FPN_Weights.COCO_V1
_FILES = ("config.json", "model.safetensors")
_SETTINGS = frozenset({"categories", "min_size", "max_size", "norm_eps"})
_MAX_ASPECT_RATIO = 64
"""Of 1333 px, 20 are left across; the model's resizing would round the shorter side of a sliver to 0."""


class FasterRcnnDetector:
    """Boxes with a label and a score, after the model's own non-maximum suppression.

    Weights are left out (those torchvision publishes, from download.pytorch.org, checked by their hash), or
    a local folder with `model.safetensors` and `config.json`: `categories` (row 0 is the background) and,
    if wanted, `min_size` and `max_size`, the sides in px that a photo is scaled to (800 and 1333), and
    `norm_eps` of the batch normalisation: 0, as torchvision runs its weights and what was tuned from them,
    or 1e-5 for a model that was trained on an ImageNet backbone.
    """

    min_score: ClassVar[float] = 0.05
    """The floor of the model itself, as in image_embed, which took the best box however unsure."""

    def __init__(self, spec: ModelSpec) -> None:
        if spec.dtype not in ("auto", "float32"):
            raise ModelError("detector 'faster-rcnn' computes in float32; leave dtype out")
        refuse_untaken(spec)
        self._weights = spec.weights or "torchvision COCO_V1"
        settings, state = self._published(spec) if not spec.weights else self._local(spec)
        categories = settings.pop("categories")
        norm_eps = settings.pop("norm_eps", 0.0)
        with opening(spec, self._weights):
            backbone = resnet_fpn_backbone(backbone_name="resnet50", weights=None)
            model = FasterRCNN(backbone, num_classes=len(categories), **settings)
            report = model.load_state_dict(state, strict=False)
        for module in model.modules():
            if isinstance(module, FrozenBatchNorm2d):
                module.eps = norm_eps
        refuse_missing(self._weights, report.missing_keys)
        self._model = for_inference(model, spec, self._weights)
        self._categories: list[str] = categories

    def _published(self, spec: ModelSpec) -> tuple[dict[str, Any], Any]:
        folder = cache_of(spec) or Path(torch.hub.get_dir(), "checkpoints")
        cached = folder / PUBLISHED.url.rpartition("/")[2]
        if HF_HUB_OFFLINE and not cached.is_file():
            raise ModelUnavailableError(
                f"model {self._weights!r} is not on this machine ({cached}), and HF_HUB_OFFLINE is set: "
                "connect once so that it can be downloaded, or set `weights` to a local folder"
            )
        with opening(spec, self._weights):
            state = torch.hub.load_state_dict_from_url(
                PUBLISHED.url,
                model_dir=str(folder),
                map_location="cpu",
                progress=False,
                check_hash=True,
                weights_only=True,
            )
        return {"categories": list(PUBLISHED.meta["categories"])}, state

    def _local(self, spec: ModelSpec) -> tuple[dict[str, Any], Any]:
        folder = local_path(spec.weights)
        if not is_local(spec.weights) or not all((folder / name).is_file() for name in _FILES):
            raise ModelError(f"model {spec.weights!r} must be a local folder with {' and '.join(_FILES)}")
        with opening(spec, self._weights):
            settings = _settings(folder / _FILES[0])
            return settings, load_file(folder / _FILES[1])

    def detect(self, images: Sequence[Image.Image]) -> list[Detections]:
        # One by one: torchvision pads the images of a batch to one size, which moves their boxes.
        return [self._found(image) for image in images]

    def _found(self, image: Image.Image) -> Detections:
        shown = widened(image, _MAX_ASPECT_RATIO)
        with running(self._weights, "1 image"):
            [found] = self._model([to_tensor(shown).to(next(self._model.parameters()).device)])
        stretched = np.asarray([shown.width / image.width, shown.height / image.height] * 2, np.float32)
        return Detections(
            np.asarray(found["boxes"].cpu().numpy() / stretched, np.float32),
            np.asarray(found["scores"].cpu().numpy(), np.float32),
            tuple(self._categories[label] for label in found["labels"].tolist()),
        )


def _settings(path: Path) -> dict[str, Any]:
    body: Any = json.loads(path.read_text(encoding="utf-8"))
    names = body.get("categories") if isinstance(body, dict) else None
    if not isinstance(names, list) or len(names) < 2 or not all(isinstance(name, str) for name in names):
        raise ModelError(f"{path} must hold `categories`: a list of names, the first for the background")
    numbers = {key: value for key, value in body.items() if key != "categories"}
    if unknown := numbers.keys() - _SETTINGS:
        raise ModelError(f"{path}: unknown key {min(unknown)!r}; known are {', '.join(sorted(_SETTINGS))}")
    for key, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float) or value < (key != "norm_eps"):
            raise ModelError(f"{path}: {key!r} must be a positive number, got {value!r}")
    return {"categories": names, **numbers}
