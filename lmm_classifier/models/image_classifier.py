"""Any image classifier of transformers: ConvNeXt, ViT, ResNet and their like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

from lmm_classifier.errors import ModelError
from lmm_classifier.models.runtime.default_checkpoints import default_weights
from lmm_classifier.models.runtime.inference import Batches
from lmm_classifier.models.runtime.options import refuse_untaken
from lmm_classifier.models.runtime.pretrained import pretrained, pretrained_model
from lmm_classifier.models.runtime.resizing import without_sliver
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.types import FloatArray

_DEFAULT_WEIGHTS = default_weights("image-classifier")
_SQUASHES_FROM = 384
"""Px from which processors with `crop_pct`, ConvNeXt's among them, no longer crop."""


class ImageClassifier:
    """Classes and their names of the checkpoint's own configuration, through its own image processor.

    Probabilities are a softmax over the classes, or a sigmoid of each where the checkpoint says that several
    may be in one image (`problem_type: multi_label_classification`) or has a single class.
    """

    def __init__(self, spec: ModelSpec) -> None:
        refuse_untaken(spec)
        self._weights = spec.weights or _DEFAULT_WEIGHTS
        self._processor = pretrained(AutoImageProcessor.from_pretrained, spec, self._weights)
        self._crops = _crops_the_centre(self._processor.to_dict())
        self._model = pretrained_model(AutoModelForImageClassification.from_pretrained, spec, self._weights)
        config = self._model.config
        if config.problem_type == "regression":
            raise ModelError(f"model {self._weights!r} was trained for regression, it has no classes")
        if sorted(config.id2label) != list(range(config.num_labels)):
            raise ModelError(
                f"model {self._weights!r} has no name for each of its {config.num_labels} classes"
            )
        self._names = tuple(str(config.id2label[i]) for i in range(config.num_labels))
        self._several = config.problem_type == "multi_label_classification" or config.num_labels == 1
        self._images = Batches(self._weights, "images")

    @property
    def names(self) -> tuple[str, ...]:
        return self._names

    def probabilities(self, images: Sequence[Image.Image]) -> FloatArray:
        if not images:
            return np.empty((0, len(self._names)), np.float32)
        return np.concatenate(self._images.parts(images, self._forward))

    def _forward(self, images: Sequence[Image.Image]) -> FloatArray:
        shown = [without_sliver(image) for image in images] if self._crops else list(images)
        inputs = self._processor(images=shown, return_tensors="pt").to(self._model.device)
        inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
        logits: torch.Tensor = self._model(**inputs).logits.float()
        chances = logits.sigmoid() if self._several else logits.softmax(dim=-1)
        return np.asarray(chances.cpu().numpy(), np.float32)


def _crops_the_centre(processing: dict[str, Any]) -> bool:
    if processing.get("do_center_crop"):
        return True
    side = (processing.get("size") or {}).get("shortest_edge")
    return bool(processing.get("crop_pct") and side and side < _SQUASHES_FROM)
