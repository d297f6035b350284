"""regions -> the one to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from lmm_classifier.errors import ConfigError
from lmm_classifier.pipeline import Step
from lmm_classifier.types import Box, Region, Sample, Skip, Target

Prominence = Literal["score", "largest", "score_area"]
OnMissing = Literal["fallback", "skip", "error"]
CropPolicy = Literal["pad", "centre"]
Padding = Annotated[float, Field(strict=True, ge=0, le=4, allow_inf_nan=False)]


@dataclass(frozen=True, config={"extra": "forbid"})
class Focus(Step):
    """Choose the most prominent region of a kind; the following steps look at nothing else.

    Attributes:
        kind: label of the regions to choose from, such as "person".
        prominence: which one is it: the surest, the largest, or by score x area. Ties go to the larger,
            then the left-most, then the upper.
        padding: grow the box on each side by this share of its own side, within the photo.
        crop_policy: "pad" makes the cut a square, so that models that crop the centre see all of it;
            "centre" leaves it as it is.
        on_missing: if there is none: "fallback" looks at the whole image and says so, "skip" leaves the
            sample alone from here on, "error" raises.
    """

    name: ClassVar[str] = "focus"
    requires: ClassVar[frozenset[str]] = frozenset({"regions"})
    provides: ClassVar[frozenset[str]] = frozenset({"target", "skipped"})

    kind: Annotated[str, Field(min_length=1)]
    prominence: Prominence = "score"
    padding: Padding = 0.0
    crop_policy: CropPolicy = "pad"
    on_missing: OnMissing = "skip"

    def resolution(self) -> int | None:
        """All pixels: a region may be small."""
        return None

    def run(self, batch: Sequence[Sample]) -> list[Sample]:
        return [self._focused(sample) for sample in batch]

    def _focused(self, sample: Sample) -> Sample:
        rows = [row for row, region in enumerate(sample.regions) if region.kind == self.kind]
        if rows:
            row = max(rows, key=lambda row: self._rank(sample.regions[row]))
            box = _grown(sample.regions[row].box, self.padding, sample.image.size)
            return replace(sample, target=Target(self.kind, row, box, self.crop_policy == "pad"))
        reason = f"no {self.kind} was found"
        if self.on_missing == "error":
            raise ConfigError(f"{sample.sample_id}: {reason}; on_missing: fallback or skip goes on without")
        if self.on_missing == "skip":
            return replace(sample, skipped=Skip(f"no_{self.kind}", reason))
        return replace(
            sample, target=Target(self.kind, 0, (0, 0, *sample.image.size), square=False, fallback=reason)
        )

    def _rank(self, region: Region) -> tuple[float, ...]:
        x0, y0, x1, y1 = region.box
        area = (x1 - x0) * (y1 - y0)
        first = {"score": region.score, "largest": area, "score_area": region.score * area}
        return (first[self.prominence], area, -x0, -y0)


def _grown(box: Box, padding: float, size: tuple[int, int]) -> Box:
    x0, y0, x1, y1 = box
    dx, dy = round(padding * (x1 - x0)), round(padding * (y1 - y0))
    return max(x0 - dx, 0), max(y0 - dy, 0), min(x1 + dx, size[0]), min(y1 + dy, size[1])
