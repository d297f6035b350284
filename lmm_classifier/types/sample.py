"""One image on its way through the pipeline."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from PIL import Image

from lmm_classifier.types.arrays import FloatArray
from lmm_classifier.types.decisions import Choice, Verdict
from lmm_classifier.types.evidence import Neighbours, Scores
from lmm_classifier.types.labels import LabelScore, Membership
from lmm_classifier.types.regions import Box, Region, Skip, Target


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class Sample:
    """One image on its way through the pipeline: one optional field per step.

    Attributes:
        sample_id: unique within a run; a path for files.
        image: upright RGB.
        truth: the right label, where it is known.
        sha256: of the file's bytes, where it was read from one.
        regions: all regions that were proposed, the whole image first.
        target: the one region to look at; None looks at all of them. The r of the fields below is the
            number of regions looked at.
        skipped: why no further step looks at this sample; None while they do.
        embeddings: encoder fingerprint -> float32 (r, d), unit rows; fingerprint and "-raw" -> as the model
            gives them.
        labelings: per region looked at, what `label` or `zero_shot` found, best first.
        captions: per region looked at, one sentence or more.
        memberships: what `classify` found, one per collection.
        neighbours, scores, verdicts, choices: set by retrieve, vote (and text_prior), open_set and rerank.
        timings: step name -> seconds this sample took (its share of the batch); kept by the pipeline.
        arrived: `time.monotonic` when it came in; deadlines count from it.
    """

    sample_id: str
    image: Image.Image
    truth: str | None = None
    sha256: str | None = None
    regions: tuple[Region, ...]
    target: Target | None = None
    skipped: Skip | None = None
    embeddings: Mapping[str, FloatArray] = field(default_factory=lambda: MappingProxyType({}))
    neighbours: Neighbours | None = None
    scores: Scores | None = None
    verdicts: tuple[Verdict, ...] | None = None
    choices: tuple[Choice | None, ...] | None = None
    labelings: tuple[tuple[LabelScore, ...], ...] | None = None
    captions: tuple[str, ...] | None = None
    memberships: tuple[Membership, ...] | None = None
    timings: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    arrived: float = field(default_factory=time.monotonic)

    @classmethod
    def from_image(
        cls, sample_id: str, image: Image.Image, truth: str | None = None, sha256: str | None = None
    ) -> Sample:
        """Start a sample whose only region is the whole image."""
        regions = (Region((0, 0, *image.size)),)
        return cls(sample_id=sample_id, image=image, truth=truth, sha256=sha256, regions=regions)

    @property
    def n_looked_at(self) -> int:
        """Number of regions looked at."""
        return 1 if self.target is not None else len(self.regions)

    @property
    def view(self) -> Box:
        """The part that steps look for things in: the target's box, else the whole image."""
        return self.target.box if self.target is not None else (0, 0, *self.image.size)

    def crops(self) -> list[Image.Image]:
        """Pixels of each region looked at, in order; the whole image is not copied."""
        if self.target is not None:
            return [self.target.cut(self.image)]
        return [self.image if r.kind == "image" else self.image.crop(r.box) for r in self.regions]
