"""How good the answers were, and what the reranker changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.metrics import confusion_matrix

from lmm_classifier.api.classification import Classification
from lmm_classifier.errors import CorpusError
from lmm_classifier.metrics.open_set import auroc
from lmm_classifier.types import UNKNOWN, IntArray


@dataclass(frozen=True, slots=True)
class StageMetrics:
    """Figures over queries whose right answer is known, all shares in [0, 1].

    A query is known when its true label is in the index; of any other the right answer is "unknown".

    Attributes:
        n_known, n_unknown: queries of either kind.
        retrieval_accuracy, hybrid_accuracy: share of right answers over all queries, without and with
            the reranker.
        retrieval_accuracy_known, hybrid_accuracy_known: the same over the known queries alone; one that
            is called unknown counts as wrong.
        share_reranked: queries that the reranker decided.
        corrections, regressions: wrong answers it made right, and right ones it made wrong.
        corrections_known, regressions_known: those among the known queries.
        unknown_auroc: probability that a known query looks more known (`known_score`) than an unknown
            one; None without both kinds.
        retrieval_auroc: the same from retrieval's closeness alone.
        rejected_known, rejected_unknown: share of either kind that is called unknown.
    """

    n_known: int
    n_unknown: int
    retrieval_accuracy: float
    hybrid_accuracy: float
    retrieval_accuracy_known: float
    hybrid_accuracy_known: float
    share_reranked: float
    corrections: int
    regressions: int
    corrections_known: int
    regressions_known: int
    unknown_auroc: float | None
    retrieval_auroc: float | None
    rejected_known: float
    rejected_unknown: float | None


def measure(answers: Sequence[Classification], truths: Sequence[str], labels: Sequence[str]) -> StageMetrics:
    """Compare answers with the truth.

    Args:
        answers: n answers.
        truths: n true labels, in the same order.
        labels: labels of the index; a true label outside counts as unknown.

    Raises:
        CorpusError: no known query.
    """
    right_answers = [truth if truth in set(labels) else UNKNOWN for truth in truths]
    known = np.asarray([truth != UNKNOWN for truth in right_answers])
    if not known.any():
        raise CorpusError("no query has a label of the index, so nothing can be measured")
    hybrid = np.asarray([a.label == t for a, t in zip(answers, right_answers, strict=True)])
    retrieval = np.asarray([a.retrieval_label == t for a, t in zip(answers, right_answers, strict=True)])
    rejected = np.asarray([a.label == UNKNOWN for a in answers])
    both_kinds = not known.all()
    return StageMetrics(
        n_known=int(known.sum()),
        n_unknown=int((~known).sum()),
        retrieval_accuracy=float(retrieval.mean()),
        hybrid_accuracy=float(hybrid.mean()),
        retrieval_accuracy_known=float(retrieval[known].mean()),
        hybrid_accuracy_known=float(hybrid[known].mean()),
        share_reranked=float(np.mean([a.used_reranker for a in answers])),
        corrections=int((hybrid & ~retrieval).sum()),
        regressions=int((retrieval & ~hybrid).sum()),
        corrections_known=int((hybrid & ~retrieval & known).sum()),
        regressions_known=int((retrieval & ~hybrid & known).sum()),
        unknown_auroc=float(auroc([known_score(a) for a in answers], known)) if both_kinds else None,
        retrieval_auroc=float(auroc([a.closeness for a in answers], known)) if both_kinds else None,
        rejected_known=float(rejected[known].mean()),
        rejected_unknown=float(rejected[~known].mean()) if both_kinds else None,
    )


def known_score(answer: Classification) -> float:
    """How sure the classifier is that the image shows a label of the index, in [0, 1].

    Retrieval's closeness, times the probability that the reranker leaves to the labels where it was
    asked and offered "unknown".
    """
    doubt = sum(c.probability or 0.0 for c in answer.candidates if c.label == UNKNOWN)
    return answer.closeness * (1 - doubt)


def confusion(answers: Sequence[Classification], truths: Sequence[str]) -> tuple[tuple[str, ...], IntArray]:
    """Count true label (row) against answer (column); returns the names and int64 (c, c).

    Labels that only occur as truth keep a row of their own, with "unknown" last.
    """
    names = sorted({*truths, *(answer.label for answer in answers)} - {UNKNOWN})
    order = (*names, UNKNOWN)
    counts = confusion_matrix(truths, [answer.label for answer in answers], labels=order)
    return order, np.asarray(counts, np.int64)
