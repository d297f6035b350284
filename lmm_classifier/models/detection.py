"""What the rest of the package may ask of a detector. No torch here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import numpy as np
from PIL import Image

from lmm_classifier.errors import ModelError
from lmm_classifier.models.loading import answering, open_model
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.types import FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """What a detector found in one image, in any order.

    Attributes:
        boxes: float32 (n, 4), x0, y0, x1, y1 in pixels; they may reach beyond the image.
        scores: float32 (n,), confidence in [0, 1].
        labels: n names of what was found, such as "person" or "face".
    """

    boxes: FloatArray
    scores: FloatArray
    labels: tuple[str, ...]


class Detector(Protocol):
    """A model that finds things. A detector is constructed from a ModelSpec.

    Attributes:
        min_score: the score its boxes should have unless somebody says otherwise.
    """

    min_score: float

    def detect(self, images: Sequence[Image.Image]) -> list[Detections]:
        """Find everything in RGB images of any size, however unsure: the caller cuts.

        Returns:
            per image, what was found; nothing found is no error.

        Raises:
            ModelError: the model failed.
        """
        ...


def load_detector(spec: ModelSpec) -> Detector:
    """The one detector of this spec in the process, opened on first use.

    Raises:
        ConfigError: unknown family.
        ModelError: it cannot be opened.
    """
    return cast("Detector", open_model("detector", spec))


def detected(spec: ModelSpec, images: Sequence[Image.Image]) -> list[Detections]:
    """Ask the detector of this spec, and take from it only what its protocol promises.

    Raises:
        ModelError: it cannot be opened, failed, or gave something else.
    """
    detector = load_detector(spec)
    with answering("detector", spec):
        found = detector.detect(images)
    if len(found) != len(images):
        raise ModelError(f"detector {spec.family!r} gave {len(found)} answers for {len(images)} images")
    for each in found:
        n = len(each.labels)
        if each.boxes.shape != (n, 4) or each.scores.shape != (n,) or not np.isfinite(each.boxes).all():
            raise ModelError(
                f"detector {spec.family!r} must give finite boxes (n, 4), scores (n,) and n labels, got "
                f"{each.boxes.shape}, {each.scores.shape} and {n}"
            )
    return found
