"""neighbours -> scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import numpy.typing as npt
from pydantic.dataclasses import dataclass

from lmm_classifier.decision.heads import Queries
from lmm_classifier.decision.vote import DEFAULT_TEMPERATURE, weighted_vote
from lmm_classifier.index.calibration import StoredCalibration, read_calibration
from lmm_classifier.index.search import open_index
from lmm_classifier.options import Temperature
from lmm_classifier.pipeline import Step, by_sample
from lmm_classifier.types import Neighbours, Sample, Scores, required


@dataclass(frozen=True, config={"extra": "forbid"})
class Vote(Step):
    """From neighbours to scores: as the index was calibrated, else by a vote of the neighbours.

    Attributes:
        temperature: of the vote, in which a neighbour weighs softmax(similarity / temperature). None takes
            the calibrated value, else the documented default (0.07).
        calibration: index folder whose calibration, where it has one, decides how: by which heads, from how
            many neighbours, and how known a region looks.
    """

    name: ClassVar[str] = "vote"
    requires: ClassVar[frozenset[str]] = frozenset({"embeddings", "neighbours"})
    provides: ClassVar[frozenset[str]] = frozenset({"scores"})

    temperature: Temperature | None = None
    calibration: Path | None = None

    def load(self) -> None:
        self._fitted()

    def run(self, batch: Sequence[Sample]) -> list[Sample]:
        fitted = self._fitted() if batch else None
        if fitted is None or self.calibration is None:
            return [replace(sample, scores=self._count(required(sample.neighbours))) for sample in batch]
        index = open_index(self.calibration)
        return [
            replace(sample, scores=scores)
            for sample, scores in zip(
                batch, _decided(batch, fitted, index.labels, index.records.codes), strict=True
            )
        ]

    def _fitted(self) -> StoredCalibration | None:
        return read_calibration(self.calibration) if self.calibration else None

    def _count(self, neighbours: Neighbours) -> Scores:
        temperature = DEFAULT_TEMPERATURE if self.temperature is None else self.temperature
        return weighted_vote(neighbours.similarity, neighbours.labels, temperature)


def queries_of(batch: Sequence[Sample], encoders: Sequence[str], codes: npt.NDArray[np.int32]) -> Queries:
    """All regions of a batch, as heads and novelty scores take them.

    Args:
        batch: samples with embeddings and neighbours.
        encoders: fingerprints of the encoders that take part.
        codes: int32 (n,), columns of the labels of the index.
    """
    near = [required(sample.neighbours) for sample in batch]
    rows = np.concatenate([neighbours.rows for neighbours in near])
    return Queries(
        tuple(np.concatenate([sample.embeddings[encoder] for sample in batch]) for encoder in encoders),
        np.concatenate([neighbours.similarity for neighbours in near]),
        np.where(rows >= 0, codes[rows], -1).astype(np.int64),
    )


def _decided(
    batch: Sequence[Sample], fitted: StoredCalibration, labels: tuple[str, ...], codes: npt.NDArray[np.int32]
) -> list[Scores]:
    """The calibrated scores of all regions of the batch, decided in one go."""
    decided = fitted.decider.decide(queries_of(batch, fitted.calibration.encoders, codes))
    known = by_sample(batch, decided.known.astype(np.float32))
    values = by_sample(batch, decided.probabilities)
    return [Scores(labels, v, k) for v, k in zip(values, known, strict=True)]
