"""What the reranker had to choose from: the ceiling of its accuracy, and how near it comes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lmm_classifier.api.classification import Candidate, Classification
from lmm_classifier.errors import ConfigError
from lmm_classifier.metrics.weighted import Counts, Floats, drawn, share
from lmm_classifier.types import UNKNOWN, BoolArray, IntArray


def candidate_ranks(answers: Sequence[Classification], truths: Sequence[str]) -> IntArray:
    """Place of the true label among the candidates by evidence, 1 for the best: int64 (n,), 0 for none."""
    return np.asarray(
        [_rank(answer.candidates, truth) for answer, truth in zip(answers, truths, strict=True)], np.int64
    )


def candidate_recall(ranks: IntArray, k: int, counts: Counts | None = None) -> Floats:
    """Share of the queries whose true label is among the k best candidates, in [0, 1].

    No reranker that is shown k labels can be right more often.

    Args:
        ranks: (n,), of known queries alone.
        k: at least 1.
        counts: (n,) or (b, n), as `columns` says.

    Raises:
        ConfigError: `k` is out of range.
    """
    if k < 1:
        raise ConfigError(f"k must be at least 1, got {k}")
    return share((ranks >= 1) & (ranks <= k), counts=drawn(counts, len(ranks)))


def offered(answers: Sequence[Classification], right_answers: Sequence[str]) -> BoolArray:
    """Whether the reranker was asked and its options held the right answer ("unknown" counts): bool (n,)."""
    return np.asarray(
        [
            answer.used_reranker
            and any(c.label == right and c.probability is not None for c in answer.candidates)
            for answer, right in zip(answers, right_answers, strict=True)
        ],
        bool,
    )


def best_label(answer: Classification) -> str:
    """The label it would get if nothing were rejected: the answer, else the best candidate.

    Best by the reranker's probability where it was asked, else by the evidence. "unknown" without any
    candidate.
    """
    if answer.label != UNKNOWN:
        return answer.label
    named = [c for c in answer.candidates if c.label != UNKNOWN]
    best = max(named, key=lambda c: (c.probability or 0.0, c.score), default=None)
    return UNKNOWN if best is None else best.label


def _rank(candidates: Sequence[Candidate], truth: str) -> int:
    named = [candidate.label for candidate in candidates if candidate.label != UNKNOWN]
    return named.index(truth) + 1 if truth in named else 0
