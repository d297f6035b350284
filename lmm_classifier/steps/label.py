"""regions -> labelings, by a classifier with classes of its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from pydantic import field_validator
from pydantic.dataclasses import dataclass

from lmm_classifier import registry
from lmm_classifier.decision.ranking import ranked
from lmm_classifier.models.classification import classified, load_classifier
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.options import Share, TopK
from lmm_classifier.pipeline import Step, by_sample, crops_of
from lmm_classifier.types import Sample

_SYNONYMS = ", "
"""Between the names of one class, in ImageNet's label file and the checkpoints trained on it."""


@dataclass(frozen=True, config={"extra": "forbid"})
class Label(Step):
    """Name what is in the regions looked at, among the classes that the model was trained on.

    Attributes:
        model: the classifier.
        top_k: keep so many classes at most; None keeps all.
        min_score: keep those of at least this probability.
    """

    name: ClassVar[str] = "label"
    requires: ClassVar[frozenset[str]] = frozenset({"image", "regions"})
    provides: ClassVar[frozenset[str]] = frozenset({"labelings"})

    model: ModelSpec
    top_k: TopK | None = 5
    min_score: Share = 0.0

    @field_validator("model")
    @classmethod
    def _registered(cls, model: ModelSpec) -> ModelSpec:
        registry.check("classifier", model.family)
        return model

    def load(self) -> None:
        load_classifier(self.model)

    def run(self, batch: Sequence[Sample]) -> list[Sample]:
        if not batch:
            return []
        names = [name.split(_SYNONYMS) for name in load_classifier(self.model).names]
        rows = classified(self.model, crops_of(batch))  # (sum of r, c)
        return [
            replace(sample, labelings=tuple(ranked(row, names, self.top_k, self.min_score) for row in some))
            for sample, some in zip(batch, by_sample(batch, rows), strict=True)
        ]
