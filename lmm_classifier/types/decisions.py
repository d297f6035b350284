"""What is decided about a region, and what a vision-language model makes of the options."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from lmm_classifier.types.arrays import FloatArray

Status = Literal["known", "uncertain", "unknown"]
Route = Literal["accept", "unknown", "rerank", "review"]
UNKNOWN = "unknown"
"""The label of an answer that no label of the corpus fits; reserved wherever unknowns are allowed."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """The decision for one region.

    Attributes:
        status: "known", "uncertain" (best guess, not confident) or "unknown".
        label: the decided label, also when uncertain; None when unknown.
        score: in [0, 1]: evidence for `label` (1 - closeness where it says unknown), or the
            reranker's probability of its choice.
        decided_by: name of the step that made this decision.
        reason: one sentence with the numbers that decided.
        degraded: why a stage that should have taken part could not; None when all did.
        route: where the policy sent the region: to its answer, or to a reranker, or to a person.
        candidates: with a calibration the labels that remain possible, best first, UNKNOWN among them where
            it does; empty without one.
        p_value: with a calibration the share of known images that look at most as known, in (0, 1].
        rerank_skipped: why a reranker was not asked about an uncertain region; None where it was, or there
            is none.
        certainty: of an uncertain region, how sure retrieval is of its answer among what is possible, in
            (0, 1]; set where a reranker might be asked.
    """

    status: Status
    label: str | None
    score: float
    decided_by: str
    reason: str
    degraded: str | None = None
    route: Route | None = None
    candidates: tuple[str, ...] = ()
    p_value: float | None = None
    rerank_skipped: str | None = None
    certainty: float | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Choice:
    """What a vision-language model made of the options it was shown.

    Attributes:
        options: labels in the order presented; may include UNKNOWN.
        log_likelihoods: float32 (len(options),), natural logarithm of how likely each label is given image
            and prompt, up to a constant; at most 0.
    """

    options: tuple[str, ...]
    log_likelihoods: FloatArray

    def __post_init__(self) -> None:
        if self.log_likelihoods.shape != (len(self.options),):
            raise ValueError(
                f"log_likelihoods must be ({len(self.options)},), got {self.log_likelihoods.shape}"
            )
        self.log_likelihoods.setflags(write=False)

    @property
    def probabilities(self) -> dict[str, float]:
        """Probability of each option among the options; they sum to 1."""
        weights = np.exp(self.log_likelihoods.astype(np.float64) - self.log_likelihoods.max())
        return dict(zip(self.options, (weights / weights.sum()).tolist(), strict=True))
