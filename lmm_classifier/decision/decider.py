"""The calibrated decision of a whole batch: probability per label, and how known each query looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lmm_classifier.decision.conformal import p_values
from lmm_classifier.decision.heads import HeadSettings, Queries, head_probabilities
from lmm_classifier.decision.novelty import Combination, novelty_scores
from lmm_classifier.decision.reference import Reference
from lmm_classifier.types import Float64Array, FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Decided:
    """What a batch of n queries looks like.

    Attributes:
        probabilities: float32 (n, c), rows sum to 1.
        known: float64 (n,) in [0, 1], higher is more known.
        p_values: float64 (n,) in (0, 1], share of known images that look at most as known.
    """

    probabilities: FloatArray
    known: Float64Array
    p_values: Float64Array


@dataclass(frozen=True, slots=True, eq=False)
class Decider:
    """Head and novelty score as calibrated.

    Attributes:
        references: one per encoder.
        settings: the head.
        depth: neighbours looked at; queries must have as many, unless the index has fewer.
        combination: the novelty score.
        calibrated: float64 (m,), ascending: `known` of the images calibrated on.
    """

    references: tuple[Reference, ...]
    settings: HeadSettings
    depth: int
    combination: Combination
    calibrated: Float64Array

    def decide(self, queries: Queries) -> Decided:
        """Decide a batch; an answer does not depend on the others in it."""
        queries = nearest(queries, self.depth)
        probabilities = head_probabilities(queries, self.references, self.settings)
        scores = novelty_scores(self.combination.names, queries, self.references, self.settings)
        known = self.combination.known(scores)
        return Decided(probabilities, known, p_values(self.calibrated, known))


def nearest(queries: Queries, depth: int) -> Queries:
    """The queries with their first neighbours only."""
    return replace(queries, similarity=queries.similarity[:, :depth], codes=queries.codes[:, :depth])


def encoders_needed(names: Sequence[str]) -> int:
    """How many encoders heads or scores of these names look at."""
    return 1 + max((int(name.partition("#")[2] or 0) for name in names), default=0)
