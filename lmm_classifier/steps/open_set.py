"""scores -> verdicts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, Self

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from lmm_classifier.decision.policy import (
    DEFAULT_CONFIDENCE,
    DEFAULT_MIN_DELTA,
    DEFAULT_OPEN_SET,
    Source,
    Thresholds,
    judge,
    weigh,
)
from lmm_classifier.errors import ConfigError
from lmm_classifier.index.calibration import read_calibration
from lmm_classifier.pipeline import Step
from lmm_classifier.ranges import Flag, Share
from lmm_classifier.types import FloatArray, Sample, Verdict, required


@dataclass(frozen=True, config={"extra": "forbid"})
class OpenSet(Step):
    """Decide known, uncertain or unknown from the evidence.

    Attributes:
        confidence_threshold, open_set_threshold: None takes the calibrated value, else the documented
            default (0.6 and 0.35).
        min_delta: lead over the second label that a confident answer needs.
        allow_unknown: False gives every image a label (closed set).
        calibration: index folder whose calibration supplies thresholds that are None.
    """

    name: ClassVar[str] = "open_set"
    requires: ClassVar[frozenset[str]] = frozenset({"scores"})
    provides: ClassVar[frozenset[str]] = frozenset({"verdicts"})

    confidence_threshold: Share | None = None
    open_set_threshold: Share | None = None
    min_delta: Share = DEFAULT_MIN_DELTA
    allow_unknown: Flag = True
    calibration: Path | None = None

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        confidence, open_set = self.confidence_threshold, self.open_set_threshold
        if confidence is not None and open_set is not None and open_set > confidence:
            raise ValueError(
                f"open_set_threshold ({open_set}) must not exceed confidence_threshold ({confidence})"
            )
        return self

    def load(self) -> None:
        self.thresholds()

    def thresholds(self) -> Thresholds:
        """The cuts in force, once configuration, calibration and defaults are put together.

        Raises:
            IndexFolderError: the calibration is damaged or of another state of the index.
            ConfigError: one configured threshold contradicts the other, which was left out.
        """
        confidence, open_set = self.confidence_threshold, self.open_set_threshold
        configured = confidence is not None and open_set is not None
        fitted = read_calibration(self.calibration) if self.calibration and not configured else None
        if confidence is None:
            confidence = fitted.confidence_threshold if fitted else DEFAULT_CONFIDENCE
        if open_set is None:
            open_set = fitted.open_set_threshold if fitted else DEFAULT_OPEN_SET
        source: Source = "configured" if configured else "calibrated" if fitted else "default"
        if open_set > confidence:
            raise ConfigError(
                f"open_set_threshold ({open_set:.3f}) must not exceed confidence_threshold "
                f"({confidence:.3f}); one of them is {'calibrated' if fitted else 'a default'}: set both"
            )
        return Thresholds(confidence, open_set, self.min_delta, self.allow_unknown, source)

    def run(self, batch: Sequence[Sample]) -> list[Sample]:
        if not batch:
            return []
        cut = self.thresholds()
        return [replace(sample, verdicts=self._decide(sample, cut)) for sample in batch]

    def _decide(self, sample: Sample, cut: Thresholds) -> tuple[Verdict, ...]:
        scores = required(sample.scores)
        return tuple(self._verdict(scores.labels, row, cut) for row in scores.values)

    def _verdict(self, labels: tuple[str, ...], row: FloatArray, cut: Thresholds) -> Verdict:
        evidence = weigh(row)
        status, reason = judge(evidence, cut)
        if status == "unknown":
            return Verdict(status, None, 1 - evidence.closeness, self.name, reason)
        return Verdict(status, labels[evidence.best], evidence.score, self.name, reason)
