"""The calibrated policy: two gates, novelty and ambiguity, and where they send an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from lmm_classifier.decision.conformal import conformal_sets
from lmm_classifier.types import UNKNOWN, BoolArray, FloatArray, Route, Scores, Status

STATUS: Mapping[Route, Status] = {
    "accept": "known",
    "unknown": "unknown",
    "rerank": "uncertain",
    "review": "uncertain",
}
_NAMED = 3  # labels that a reason spells out


@dataclass(frozen=True, slots=True)
class Gates:
    """Where the calibrated policy cuts. All in [0, 1].

    The labels that remain possible for an image are those that reach `probability`, and UNKNOWN unless the
    image reaches `sure`. One: accept it. None, for an image below `known`: unknown. Up to
    `max_candidates`: rerank. More: review, by a person.

    Attributes:
        known: closeness below which an image is unknown.
        sure: closeness from which it cannot be unknown; at least `known`.
        probability: that a label needs to be possible. The best label always is.
        keep_known: share of known images that `known` was fitted to keep.
        coverage: share of those kept whose true label `probability` was fitted to keep possible.
        per_label: cuts in place of `known` for images whose best label is this one.
        max_candidates: labels, UNKNOWN not counted, that a reranker is asked about at most.
        min_delta: lead below which the second label is possible too.
        allow_unknown: False skips the novelty gate.
    """

    known: float
    sure: float
    probability: float
    keep_known: float
    coverage: float
    per_label: Mapping[str, float] = field(default_factory=dict)
    max_candidates: int = 5
    min_delta: float = 0.0
    allow_unknown: bool = True
    source: Literal["calibrated"] = "calibrated"

    def describe(self) -> str:
        """The cuts in a few words."""
        return f"known {self.known:.3f}, sure {self.sure:.3f}, probability {self.probability:.3f}"


@dataclass(frozen=True, slots=True)
class Routed:
    """Where a region goes.

    Attributes:
        route: accept, unknown, rerank or review.
        best: column of the best label.
        candidates: what remains possible, best first; UNKNOWN last.
        reason: one sentence with the numbers that decided.
    """

    route: Route
    best: int
    candidates: tuple[str, ...]
    reason: str


def route(scores: Scores, gates: Gates) -> tuple[Routed, ...]:
    """Send each of r regions on its way.

    Args:
        scores: probabilities (r, c), c > 0, and how known each region looks.
        gates: the cuts.
    """
    values, closeness = scores.values, scores.closeness
    order = np.argsort(-values, axis=1, kind="stable")
    possible = conformal_sets(values, gates.probability)
    _admit_close_seconds(possible, values, order, gates.min_delta)
    return tuple(
        _routed(scores.labels, values[i], order[i][possible[i][order[i]]], float(closeness[i]), gates)
        for i in range(len(values))
    )


def joined(scores: Sequence[Scores]) -> Scores:
    """Scores over the same labels as one, region after region."""
    known = [each.known for each in scores if each.known is not None]
    return Scores(
        scores[0].labels,
        np.concatenate([each.values for each in scores]),
        np.concatenate(known) if len(known) == len(scores) else None,
    )


def _admit_close_seconds(
    possible: BoolArray, values: FloatArray, order: npt.NDArray[np.intp], min_delta: float
) -> None:
    if values.shape[1] < 2:
        return
    rows = np.arange(len(values))
    first, second = order[:, 0], order[:, 1]
    close = values[rows, first] - values[rows, second] < min_delta
    possible[rows[close], second[close]] = True


def _routed(
    labels: Sequence[str], row: FloatArray, ranked: Sequence[int], closeness: float, gates: Gates
) -> Routed:
    best = int(ranked[0])
    cut = gates.per_label.get(labels[best], gates.known)
    if gates.allow_unknown and closeness < cut:
        kept = f"{gates.keep_known:.0%} of known images reach"
        return Routed("unknown", best, (), f"closeness {closeness:.3f} is below {cut:.3f}, which {kept}")
    names = tuple(labels[j] for j in ranked)
    doubtful = gates.allow_unknown and closeness < gates.sure
    spelt = ", ".join(f"{labels[j]!r} {row[j]:.3f}" for j in ranked[:_NAMED])
    spelt += f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    if doubtful:
        spelt += f"; or unknown: closeness {closeness:.3f} is below {gates.sure:.3f}"
    possible = (*names, UNKNOWN) if doubtful else names
    if len(possible) == 1:
        reason = f"only {spelt} is possible, no other label has {gates.probability:.3f}"
        return Routed("accept", best, possible, f"{reason}; closeness {closeness:.3f}")
    if len(names) > gates.max_candidates:
        return Routed("review", best, possible, f"more than {gates.max_candidates} labels possible: {spelt}")
    return Routed("rerank", best, possible, f"possible: {spelt}")
