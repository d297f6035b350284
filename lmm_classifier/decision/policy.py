"""Known, uncertain or unknown: the documented policy over evidence per label."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lmm_classifier.types import FloatArray, Route, Status

# The documented defaults of the hand-set thresholds; a calibration replaces thresholds and policy.
DEFAULT_CONFIDENCE = 0.6
DEFAULT_OPEN_SET = 0.35
DEFAULT_MIN_DELTA = 0.05

ROUTE: Mapping[Status, Route] = {"known": "accept", "uncertain": "rerank", "unknown": "unknown"}
Source = Literal["configured", "default"]


@dataclass(frozen=True, slots=True)
class Thresholds:
    """Where the policy cuts. All on the scale of cosine similarity, in [0, 1].

    Attributes:
        confidence: evidence the best label needs to be believed.
        open_set: closeness to the corpus (sum of the evidence) below which an image is unknown.
        min_delta: lead the best label needs over the second.
        allow_unknown: False means closed set: every image gets a label.
        source: whether `confidence` and `open_set` were set by hand, at least one of them.
    """

    confidence: float = DEFAULT_CONFIDENCE
    open_set: float = DEFAULT_OPEN_SET
    min_delta: float = DEFAULT_MIN_DELTA
    allow_unknown: bool = True
    source: Source = "default"

    def describe(self) -> str:
        """The cuts in a few words."""
        return f"confidence {self.confidence:.3f}, open set {self.open_set:.3f}"


@dataclass(frozen=True, slots=True)
class Evidence:
    """One row of scores, summed up.

    Attributes:
        best: column of the best label; ties go to the first in alphabetical order. -1 without labels.
        score: evidence for it.
        lead: how far ahead of the second it is; all of `score` where there is no second.
        closeness: how known it looks, in [0, 1].
    """

    best: int
    score: float
    lead: float
    closeness: float


def weigh(row: FloatArray, closeness: float) -> Evidence:
    """Sum up one row of `Scores.values`, float32 (c,), and of `Scores.closeness`."""
    if not row.size:
        return Evidence(-1, 0.0, 0.0, 0.0)
    best = int(np.argmax(row))
    second = float(np.delete(row, best).max(initial=0.0))
    return Evidence(best, float(row[best]), float(row[best]) - second, closeness)


def judge(evidence: Evidence, cut: Thresholds) -> tuple[Status, str]:
    """Apply the policy to one region, in the documented order, and say why.

    1. Closeness strictly below `open_set`, where unknowns are allowed: unknown.
    2. Score at least `confidence` and lead at least `min_delta`: known.
    3. Otherwise uncertain: a reranker, where there is one, may decide.

    Without any neighbour there is nothing to go by: unknown even in a closed set.
    """
    if evidence.best < 0:
        return "unknown", "the index holds no candidate"
    if cut.allow_unknown and evidence.closeness < cut.open_set:
        return "unknown", f"closeness {evidence.closeness:.3f} is below open_set_threshold {cut.open_set:.3f}"
    if evidence.score < cut.confidence:
        return "uncertain", f"score {evidence.score:.3f} is below confidence_threshold {cut.confidence:.3f}"
    if evidence.lead < cut.min_delta:
        return (
            "uncertain",
            f"lead {evidence.lead:.3f} over the second label is below min_delta {cut.min_delta:.3f}",
        )
    return "known", (
        f"score {evidence.score:.3f} reaches confidence_threshold {cut.confidence:.3f} "
        f"with a lead of {evidence.lead:.3f}"
    )
