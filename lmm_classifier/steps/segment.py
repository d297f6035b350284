"""regions -> regions with masks of what one points at."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Self

from pydantic import Field, field_validator, model_validator
from pydantic.dataclasses import dataclass

from lmm_classifier import registry
from lmm_classifier.errors import ConfigError
from lmm_classifier.masks import placed, tight_box
from lmm_classifier.models.segmentation.base import load_segmenter, open_photo
from lmm_classifier.models.segmentation.point_prompts import Cue, Prompt
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.options import Flag
from lmm_classifier.pipeline import Step
from lmm_classifier.types import Region, Sample

log = logging.getLogger(__name__)
_MinScore = Annotated[float, Field(strict=True, allow_inf_nan=False)]


@dataclass(frozen=True, config={"extra": "forbid"})
class Segment(Prompt, Step):
    """Cut out what points and boxes mean, and add a region with its mask.

    Coordinates are those of the whole photo, also where a region of it is looked at; each must lie in
    what is looked at. A photo is encoded once, however many prompts there are.

    Attributes:
        points, negative_points, box, box_format: one prompt; without any, what is in the centre.
        prompts: several, each with these four keys, in place of them.
        multimask: a region for each thing that may be meant, best first, instead of the best.
        min_score: leave out masks that the model rates lower.
        model: the segmenter.
    """

    name: ClassVar[str] = "segment"
    requires: ClassVar[frozenset[str]] = frozenset({"image", "regions"})
    provides: ClassVar[frozenset[str]] = frozenset({"regions"})

    prompts: tuple[Prompt, ...] = ()
    multimask: Flag = False
    min_score: _MinScore = 0.0
    model: ModelSpec = ModelSpec("sam2")

    @field_validator("model")
    @classmethod
    def _registered(cls, model: ModelSpec) -> ModelSpec:
        registry.check("segmenter", model.family)
        return model

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if self.prompts and not self.is_empty:
            raise ValueError("points and box are one prompt; put it into `prompts` with the others")
        return self

    def load(self) -> None:
        load_segmenter(self.model)

    def run(self, batch: Sequence[Sample]) -> list[Sample]:
        return [replace(sample, regions=(*sample.regions, *self._found(sample))) for sample in batch]

    def _found(self, sample: Sample) -> list[Region]:
        view, size = sample.view, sample.image.size
        cues = self._cues(sample)  # before the photo is encoded, which takes a second
        photo = open_photo(self.model, sample.image.crop(view))
        regions = []
        for number, cue in enumerate(cues, 1):
            for found in photo.ask(cue, self.multimask, self.min_score):
                mask = placed(found.mask, view, size)
                if box := tight_box(mask):
                    score = min(max(found.score, 0.0), 1.0)  # the model guesses, and may leave the range
                    regions.append(Region(box, "segment", self.name, score, mask))
                else:
                    log.warning("%s: an empty mask for prompt %d adds no region", sample.sample_id, number)
        return regions

    def _cues(self, sample: Sample) -> list[Cue]:
        try:
            return [prompt.cue(sample.view) for prompt in self.prompts or (self,)]
        except ConfigError as error:
            raise ConfigError(f"{sample.sample_id}: {error}") from error
