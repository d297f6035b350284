"""regions -> more regions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from pydantic import field_validator
from pydantic.dataclasses import dataclass

from lmm_classifier import registry
from lmm_classifier.models.detection import Detections, detected, load_detector
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.options import Share
from lmm_classifier.pipeline import Step
from lmm_classifier.types import Box, Region, Sample


@dataclass(frozen=True, config={"extra": "forbid"})
class Detect(Step):
    """Find things in the photo, or in the region that is looked at, and add a region for each.

    Attributes:
        model: the detector.
        labels: keep only these, such as "person"; None keeps all.
        min_score: keep boxes of at least this score; None takes what suits the detector.
    """

    name: ClassVar[str] = "detect"
    requires: ClassVar[frozenset[str]] = frozenset({"image", "regions"})
    provides: ClassVar[frozenset[str]] = frozenset({"regions"})

    model: ModelSpec
    labels: tuple[str, ...] | None = None
    min_score: Share | None = None

    @field_validator("model")
    @classmethod
    def _registered(cls, model: ModelSpec) -> ModelSpec:
        registry.check("detector", model.family)
        return model

    def load(self) -> None:
        load_detector(self.model)

    def run(self, batch: Sequence[Sample]) -> list[Sample]:
        if not batch:
            return []
        boxes = [sample.view for sample in batch]
        found = detected(
            self.model, [sample.image.crop(box) for sample, box in zip(batch, boxes, strict=True)]
        )
        return [
            replace(sample, regions=(*sample.regions, *self._regions(each, box)))
            for sample, each, box in zip(batch, found, boxes, strict=True)
        ]

    def _regions(self, found: Detections, within: Box) -> list[Region]:
        """Regions in the photo's pixels, best first; boxes are cut off where the view ends."""
        cut = load_detector(self.model).min_score if self.min_score is None else self.min_score
        regions = []
        for box, score, label in zip(found.boxes.tolist(), found.scores.tolist(), found.labels, strict=True):
            placed = _clamped(box, within)
            if score >= cut and placed and (self.labels is None or label in self.labels):
                regions.append(Region(placed, label, self.name, min(score, 1.0)))
        return sorted(regions, key=lambda region: -region.score)


def _clamped(box: Sequence[float], within: Box) -> Box | None:
    """A box in whole pixels of the photo, inside what was looked at; None where nothing of it is."""
    left, top, right, bottom = within
    x0, y0, x1, y1 = (int(value) for value in box)
    x0, x1 = (min(max(x + left, left), right) for x in (x0, x1))
    y0, y1 = (min(max(y + top, top), bottom) for y in (y0, y1))
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None
