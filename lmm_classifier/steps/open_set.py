"""scores -> verdicts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from pydantic import model_validator
from pydantic.dataclasses import dataclass

from lmm_classifier.decision.conformal import p_values
from lmm_classifier.decision.gates import STATUS, Gates, Routed, joined, route
from lmm_classifier.decision.policy import (
    DEFAULT_CONFIDENCE,
    DEFAULT_MIN_DELTA,
    DEFAULT_OPEN_SET,
    ROUTE,
    Source,
    Thresholds,
    judge,
    weigh,
)
from lmm_classifier.errors import ConfigError
from lmm_classifier.index.calibration import StoredCalibration, read_calibration
from lmm_classifier.options import Candidates, Flag, Share
from lmm_classifier.pipeline import Step, by_sample
from lmm_classifier.types import Sample, Scores, Verdict, required


@dataclass(frozen=True, config={"extra": "forbid"})
class OpenSet(Step):
    """Decide known, uncertain or unknown: by the calibrated gates, else by two thresholds.

    Attributes:
        confidence_threshold, open_set_threshold: cuts on the evidence of the vote. Setting either sets the
            calibration aside; the other is then its documented default (0.6 and 0.35).
        min_delta: lead over the second label that a confident answer needs. None: 0 with a calibration,
            else the documented default (0.05).
        allow_unknown: False gives every image a label (closed set).
        max_candidates: labels a reranker is asked about at most; where more are possible, a person is to
            look. With a calibration only.
        calibration: index folder whose calibration, where it has one, decides.
    """

    name: ClassVar[str] = "open_set"
    requires: ClassVar[frozenset[str]] = frozenset({"scores"})
    provides: ClassVar[frozenset[str]] = frozenset({"verdicts"})

    confidence_threshold: Share | None = None
    open_set_threshold: Share | None = None
    min_delta: Share | None = None
    allow_unknown: Flag = True
    max_candidates: Candidates = 5
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
        self.policy()

    def policy(self) -> Thresholds | Gates:
        """What decides, once configuration, calibration and defaults are put together.

        Raises:
            IndexFolderError: the calibration is damaged or of another state of the index.
            ConfigError: one configured threshold contradicts the default of the other.
        """
        fitted = self._fitted()
        if fitted is None:
            return self._thresholds()
        return self.in_force(fitted.calibration.gates)

    def in_force(self, gates: Gates) -> Gates:
        """Calibrated gates with what these options say besides."""
        return replace(
            gates,
            max_candidates=self.max_candidates,
            min_delta=self.min_delta or 0.0,
            allow_unknown=self.allow_unknown,
        )

    @property
    def configured(self) -> bool:
        """Whether a threshold was set by hand."""
        return self.confidence_threshold is not None or self.open_set_threshold is not None

    def run(self, batch: Sequence[Sample]) -> list[Sample]:
        policy = self.policy() if batch else None
        if isinstance(policy, Gates):
            alike = groupby(batch, key=lambda sample: required(sample.scores).labels)
            return [sample for _, samples in alike for sample in self._routed(list(samples), policy)]
        return [replace(sample, verdicts=self._judged(sample, required(policy))) for sample in batch]

    def _fitted(self) -> StoredCalibration | None:
        return read_calibration(self.calibration) if self.calibration and not self.configured else None

    def _thresholds(self) -> Thresholds:
        confidence, open_set = self.confidence_threshold, self.open_set_threshold
        confidence = DEFAULT_CONFIDENCE if confidence is None else confidence
        open_set = DEFAULT_OPEN_SET if open_set is None else open_set
        if open_set > confidence:
            raise ConfigError(
                f"open_set_threshold ({open_set}) must not exceed confidence_threshold ({confidence}); one "
                "of them is a default: set both"
            )
        min_delta = DEFAULT_MIN_DELTA if self.min_delta is None else self.min_delta
        source: Source = "configured" if self.configured else "default"
        return Thresholds(confidence, open_set, min_delta, self.allow_unknown, source)

    def _routed(self, samples: Sequence[Sample], gates: Gates) -> Iterator[Sample]:
        """Samples whose scores are over the same labels, routed together."""
        scores = joined([required(sample.scores) for sample in samples])
        if scores.known is None:
            raise ConfigError(
                "the calibrated policy needs scores that say how known an image looks; a step after `vote` "
                "lost this: make scores with dataclasses.replace(scores, values=...)"
            )
        calibrated = required(self._fitted()).decider.calibrated
        shares = p_values(calibrated, scores.known.astype(np.float64)).tolist()
        verdicts = [
            self._verdict(scores, i, routed, share)
            for i, (routed, share) in enumerate(zip(route(scores, gates), shares, strict=True))
        ]
        for sample, own in zip(samples, by_sample(samples, verdicts), strict=True):
            yield replace(sample, verdicts=tuple(own))

    def _verdict(self, scores: Scores, region: int, routed: Routed, p_value: float) -> Verdict:
        label = None if routed.route == "unknown" else scores.labels[routed.best]
        score = scores.values[region, routed.best] if label else 1 - scores.closeness[region]
        return Verdict(
            STATUS[routed.route],
            label,
            float(score),
            self.name,
            routed.reason,
            route=routed.route,
            candidates=routed.candidates,
            p_value=p_value,
        )

    def _judged(self, sample: Sample, cut: Thresholds) -> tuple[Verdict, ...]:
        scores = required(sample.scores)
        verdicts = []
        for row, closeness in zip(scores.values, scores.closeness.tolist(), strict=True):
            evidence = weigh(row, closeness)
            status, reason = judge(evidence, cut)
            label = None if status == "unknown" else scores.labels[evidence.best]
            score = evidence.score if label else 1 - closeness
            verdicts.append(Verdict(status, label, score, self.name, reason, route=ROUTE[status]))
        return tuple(verdicts)
