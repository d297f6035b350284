"""General objects by any object detector of transformers: RT-DETR, DETR, YOLOS and their like."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForObjectDetection

from lmm_classifier.errors import ModelError
from lmm_classifier.models.detection import Detections
from lmm_classifier.models.runtime.default_checkpoints import default_weights
from lmm_classifier.models.runtime.inference import running
from lmm_classifier.models.runtime.options import refuse_untaken
from lmm_classifier.models.runtime.pretrained import pretrained, pretrained_model
from lmm_classifier.models.runtime.resizing import widened
from lmm_classifier.models.spec import ModelSpec

_DEFAULT_WEIGHTS = default_weights("objects")
_MAX_ASPECT_RATIO = 64
"""For processors that keep the shape of a photo: they would round the shorter side of a sliver to 0 px."""


class ObjectDetector:
    """Boxes with labels of the checkpoint's own configuration, through its own image processor."""

    min_score: ClassVar[float] = 0.5

    def __init__(self, spec: ModelSpec) -> None:
        refuse_untaken(spec)
        self._weights = spec.weights or _DEFAULT_WEIGHTS
        self._processor = pretrained(AutoImageProcessor.from_pretrained, spec, self._weights)
        if not hasattr(self._processor, "post_process_object_detection"):
            raise ModelError(f"model {self._weights!r} is no object detector")
        self._keeps_shape = "shortest_edge" in (self._processor.to_dict().get("size") or {})
        self._model = pretrained_model(AutoModelForObjectDetection.from_pretrained, spec, self._weights)

    def detect(self, images: Sequence[Image.Image]) -> list[Detections]:
        # One by one: processors that pad the images of a batch to one size move their boxes.
        return [self._found(image) for image in images]

    def _found(self, image: Image.Image) -> Detections:
        with running(self._weights, "1 image"):
            shown = widened(image, _MAX_ASPECT_RATIO) if self._keeps_shape else image
            inputs = self._processor(images=shown, return_tensors="pt").to(self._model.device)
            inputs["pixel_values"] = inputs["pixel_values"].to(self._model.dtype)
            output: Any = self._model(**inputs)
            # In bfloat16 a coordinate of a large photo would be right to a few pixels only.
            output.logits, output.pred_boxes = output.logits.float(), output.pred_boxes.float()
            [found] = self._processor.post_process_object_detection(
                output, threshold=0.0, target_sizes=[(image.height, image.width)]
            )
        names = self._model.config.id2label
        return Detections(
            np.asarray(found["boxes"].cpu().numpy(), np.float32).reshape(-1, 4),
            np.asarray(found["scores"].cpu().numpy(), np.float32),
            tuple(names[label] for label in found["labels"].tolist()),
        )
