"""embeddings -> labelings, by the names of the labels alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from lmm_classifier import registry
from lmm_classifier.decision.ranking import ranked
from lmm_classifier.decision.text_prior import DEFAULT_TEXT_TEMPERATURE, text_probabilities
from lmm_classifier.models.encoders.label_text import TEMPLATES, kept_label_vectors
from lmm_classifier.models.loading import embedded
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.options import Temperature, Template
from lmm_classifier.pipeline import Step
from lmm_classifier.types import Sample


@dataclass(frozen=True, config={"extra": "forbid"})
class ZeroShot(Step):
    """Say how well each of the given labels fits the regions looked at, without an example of any.

    The probabilities of all labels are kept, best first; they sum to 1, whether one of them fits or none.

    Attributes:
        labels: what to choose from; each once.
        encoder: takes images and texts; an `embed` step must have it.
        templates: sentences with {} where the label goes; a label is the mean direction of them all.
        temperature: of the softmax over the labels; smaller trusts the nearest text more.
    """

    name: ClassVar[str] = "zero_shot"
    requires: ClassVar[frozenset[str]] = frozenset({"embeddings"})
    provides: ClassVar[frozenset[str]] = frozenset({"labelings"})

    labels: Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
    encoder: ModelSpec
    templates: Annotated[tuple[Template, ...], Field(min_length=1)] = TEMPLATES
    temperature: Temperature = DEFAULT_TEXT_TEMPERATURE

    @model_validator(mode="after")
    def _usable(self) -> Self:
        registry.check("encoder", self.encoder.family)
        registry.check_takes_texts(self.encoder.family)
        if twice := sorted({label for label in self.labels if self.labels.count(label) > 1}):
            raise ValueError(f"label {twice[0]!r} is there twice, and would get half of its probability each")
        return self

    def load(self) -> None:
        kept_label_vectors(self.encoder, self.labels, self.templates)

    def run(self, batch: Sequence[Sample]) -> list[Sample]:
        if not batch:
            return []
        texts = kept_label_vectors(self.encoder, self.labels, self.templates)
        names = [(label,) for label in self.labels]
        rows = [
            text_probabilities(embedded(sample, self.encoder, self.name), texts, self.temperature)
            for sample in batch
        ]
        return [
            replace(sample, labelings=tuple(ranked(row, names, None, 0.0) for row in some))
            for sample, some in zip(batch, rows, strict=True)
        ]
