"""embeddings, scores -> scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass

from lmm_classifier import registry
from lmm_classifier.decision.text_prior import DEFAULT_TEXT_TEMPERATURE, text_probabilities, with_text_prior
from lmm_classifier.index.search import open_index
from lmm_classifier.models.encoders.label_text import TEMPLATES, kept_label_vectors
from lmm_classifier.models.loading import embedded
from lmm_classifier.models.spec import ModelSpec
from lmm_classifier.options import Share, Temperature, Template
from lmm_classifier.pipeline import Step
from lmm_classifier.types import FloatArray, Sample, Scores, required


@dataclass(frozen=True, config={"extra": "forbid"})
class TextPrior(Step):
    """Let the name of a label speak for it, so that one without example images can be answered too.

    Attributes:
        encoder: takes images and texts; an `embed` step must have it.
        index: index folder or .npz file; tells which labels have images.
        weight: of the texts beside the vote; `with_text_prior` says how. At 0 the step changes nothing
            and opens nothing.
        labels: labels whose names take part; None means those of the index.
        templates: sentences with {} where the label goes; a label is the mean direction of them all.
        temperature: of the softmax over the labels; smaller trusts the nearest text more.
    """

    name: ClassVar[str] = "text_prior"
    requires: ClassVar[frozenset[str]] = frozenset({"embeddings", "scores"})
    provides: ClassVar[frozenset[str]] = frozenset({"scores"})

    encoder: ModelSpec
    index: Path
    weight: Share = 0.0
    labels: Annotated[tuple[str, ...], Field(min_length=1)] | None = None
    templates: Annotated[tuple[Template, ...], Field(min_length=1)] = TEMPLATES
    temperature: Temperature = DEFAULT_TEXT_TEMPERATURE

    @model_validator(mode="after")
    def _takes_texts(self) -> Self:
        registry.check("encoder", self.encoder.family)
        if self.weight:
            registry.check_takes_texts(self.encoder.family)
        return self

    def load(self) -> None:
        if self.weight:
            self._texts(self._labels(frozenset(open_index(self.index).labels)))

    def run(self, batch: Sequence[Sample]) -> list[Sample]:
        if not batch or not self.weight:
            return list(batch)
        return [
            replace(
                sample,
                scores=self.mixed(required(sample.scores), embedded(sample, self.encoder, self.name)),
            )
            for sample in batch
        ]

    def mixed(self, scores: Scores, vectors: FloatArray) -> Scores:
        """Scores (r, c) with what the names say of the vectors, float32 (r, d), that they are of."""
        with_images = frozenset(open_index(self.index).labels)
        labels = self._labels(with_images)
        probabilities = text_probabilities(vectors, self._texts(labels), self.temperature)
        return with_text_prior(scores, probabilities, labels, with_images, self.weight)

    def _labels(self, with_images: frozenset[str]) -> tuple[str, ...]:
        return tuple(sorted(with_images if self.labels is None else set(self.labels)))

    def _texts(self, labels: tuple[str, ...]) -> FloatArray:
        return kept_label_vectors(self.encoder, labels, self.templates)
