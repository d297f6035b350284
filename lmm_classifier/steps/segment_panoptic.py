"""regions -> regions with masks of everything in the photo."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from pydantic import field_validator
from pydantic.dataclasses import dataclass

from lmm_classifier import registry
from lmm_classifier.masks import placed, tight_box
from lmm_classifier.models.segmentation.base import PanopticSegment, load_panoptic, segmented
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.options import Flag, Share
from lmm_classifier.pipeline import Step
from lmm_classifier.types import Region, Sample


@dataclass(frozen=True, config={"extra": "forbid"})
class SegmentPanoptic(Step):
    """Divide the photo, or the region that is looked at, into things and stuff, each a region with its mask.

    No pixel belongs to two of them; the surest comes first.

    Attributes:
        model: the panoptic segmenter.
        min_score: leave out what is less sure.
        fuse_stuff: make one region of all stuff of a label, such as the sky between trees.
    """

    name: ClassVar[str] = "segment_panoptic"
    requires: ClassVar[frozenset[str]] = frozenset({"image", "regions"})
    provides: ClassVar[frozenset[str]] = frozenset({"regions"})

    model: ModelSpec = ModelSpec("detr-panoptic")
    min_score: Share = 0.5
    fuse_stuff: Flag = True

    @field_validator("model")
    @classmethod
    def _registered(cls, model: ModelSpec) -> ModelSpec:
        registry.check("panoptic", model.family)
        return model

    def load(self) -> None:
        load_panoptic(self.model)

    def run(self, batch: Sequence[Sample]) -> list[Sample]:
        if not batch:
            return []
        crops = [sample.image.crop(sample.view) for sample in batch]
        found = segmented(self.model, crops, self.min_score, self.fuse_stuff)
        return [
            replace(sample, regions=(*sample.regions, *self._regions(each, sample)))
            for sample, each in zip(batch, found, strict=True)
        ]

    def _regions(self, found: Sequence[PanopticSegment], sample: Sample) -> list[Region]:
        regions = []
        for segment in sorted(found, key=lambda segment: -segment.score):
            mask = placed(segment.mask, sample.view, sample.image.size)
            if box := tight_box(mask):
                regions.append(Region(box, segment.label, self.name, segment.score, mask))
        return regions
