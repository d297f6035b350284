"""neighbours -> scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar

from pydantic.dataclasses import dataclass

from lmm_classifier.decision.vote import DEFAULT_TEMPERATURE, weighted_vote
from lmm_classifier.pipeline import Step
from lmm_classifier.ranges import Temperature
from lmm_classifier.types import Neighbours, Sample, Scores, required


@dataclass(frozen=True, config={"extra": "forbid"})
class Vote(Step):
    """Let the neighbours vote for their labels, each weighted by softmax(similarity / temperature)."""

    name: ClassVar[str] = "vote"
    requires: ClassVar[frozenset[str]] = frozenset({"neighbours"})
    provides: ClassVar[frozenset[str]] = frozenset({"scores"})

    temperature: Temperature = DEFAULT_TEMPERATURE

    def run(self, batch: Sequence[Sample]) -> list[Sample]:
        return [replace(sample, scores=self._count(required(sample.neighbours))) for sample in batch]

    def _count(self, neighbours: Neighbours) -> Scores:
        return weighted_vote(neighbours.similarity, neighbours.labels, self.temperature)
