"""Faces by MTCNN of facenet-pytorch, whose weights come inside the package."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from facenet_pytorch import MTCNN
from PIL import Image

from lmm_classifier.errors import ModelError
from lmm_classifier.models.detection import Detections
from lmm_classifier.models.runtime.device import device_of
from lmm_classifier.models.runtime.inference import running
from lmm_classifier.models.runtime.options import refuse_untaken
from lmm_classifier.models.spec import ModelSpec

# Zhang et al., "Joint Face Detection and Alignment using Multi-task Cascaded Convolutional Networks",
# SPL 2016: the thresholds of the three networks, the smallest face in px, the step of the image pyramid.
_THRESHOLDS = [0.6, 0.7, 0.7]
_SMALLEST = 20
_FACTOR = 0.709
_NOTHING = Detections(np.empty((0, 4), np.float32), np.empty(0, np.float32), ())


class MtcnnDetector:
    """Three small networks, each looking closer at what the one before let through."""

    min_score: ClassVar[float] = 0.6

    def __init__(self, spec: ModelSpec) -> None:
        if spec.weights or spec.dtype not in ("auto", "float32"):
            raise ModelError("detector 'mtcnn' brings its weights and computes in float32; leave both out")
        refuse_untaken(spec)
        self._model = MTCNN(
            min_face_size=_SMALLEST,
            thresholds=_THRESHOLDS,
            factor=_FACTOR,
            keep_all=True,
            device=device_of(spec),
        ).eval()
        self._lock = threading.Lock()

    def detect(self, images: Sequence[Image.Image]) -> list[Detections]:
        # One by one: a call takes images of one size only, and its result would depend on the others.
        return [self._faces(image) for image in images]

    def _faces(self, image: Image.Image) -> Detections:
        if min(image.size) < _SMALLEST:  # no face fits, and the pyramid would have no level
            return _NOTHING
        with self._lock, running("mtcnn", "1 image"):
            boxes, scores = self._model.detect(image)
        if boxes is None:
            return _NOTHING
        return Detections(
            np.asarray(boxes, np.float32), np.asarray(scores, np.float32), ("face",) * len(boxes)
        )
