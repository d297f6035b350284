from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, roc_auc_score

from lmm_classifier.api.classification import Candidate, Classification
from lmm_classifier.errors import CorpusError
from lmm_classifier.metrics.stages import confusion, known_score, measure


def answer(
    label: str, retrieval: str | None = None, closeness: float = 0.5, doubt: float | None = None
) -> Classification:
    """An answer as the classifier gives it; asked of the reranker when retrieval says otherwise."""
    asked = retrieval is not None or doubt is not None
    return Classification(
        source="x",
        label=label,
        score=0.5,
        used_reranker=asked,
        status="unknown" if label == "unknown" else "known",
        stage="rerank" if asked else "open_set",
        reason="",
        degraded=None,
        retrieval_label=retrieval or label,
        closeness=closeness,
        candidates=(Candidate("unknown", 0.0, doubt),) if doubt is not None else (),
        neighbours=(),
        thresholds=None,
        timings={},
    )


def test_by_hand() -> None:
    cases = [  # answer, truth
        (answer("a", closeness=0.9), "a"),
        (answer("b", "a", closeness=0.8), "b"),  # correction
        (answer("a", "b", closeness=0.8), "b"),  # regression
        (answer("unknown", closeness=0.3), "b"),  # a known image rejected
        (answer("unknown", "a", closeness=0.6), "x"),  # correction: x is no label of the index
        (answer("a", closeness=0.7), "y"),
    ]
    found = measure([a for a, _ in cases], [t for _, t in cases], ["a", "b"])
    assert (found.n_known, found.n_unknown) == (4, 2)
    assert found.retrieval_accuracy == pytest.approx(2 / 6)
    assert found.hybrid_accuracy == pytest.approx(3 / 6)
    assert found.retrieval_accuracy_known == pytest.approx(2 / 4)
    assert found.hybrid_accuracy_known == pytest.approx(2 / 4)
    assert (found.corrections, found.regressions) == (2, 1)
    assert (found.corrections_known, found.regressions_known) == (1, 1)
    assert found.share_reranked == pytest.approx(3 / 6)
    assert found.rejected_known == pytest.approx(1 / 4)
    assert found.rejected_unknown == pytest.approx(1 / 2)
    # known .9 .8 .8 .3 against unknown .6 .7: six of eight pairs in order
    assert found.retrieval_auroc == pytest.approx(6 / 8)


def test_agrees_with_scikit_learn() -> None:
    rng = np.random.default_rng(0)
    labels = ["a", "b", "c"]
    truths = rng.choice([*labels, "x"], 300).tolist()
    answers = [
        answer(str(label), closeness=float(c))
        for label, c in zip(rng.choice([*labels, "unknown"], 300), rng.random(300), strict=True)
    ]
    found = measure(answers, truths, labels)
    right = ["unknown" if t == "x" else t for t in truths]
    assert found.hybrid_accuracy == pytest.approx(accuracy_score(right, [a.label for a in answers]))
    known = [t != "x" for t in truths]
    assert found.unknown_auroc == pytest.approx(roc_auc_score(known, [a.closeness for a in answers]))


def test_the_rerankers_doubt_lowers_the_known_score() -> None:
    assert known_score(answer("a", closeness=0.8)) == pytest.approx(0.8)
    assert known_score(answer("a", closeness=0.8, doubt=0.25)) == pytest.approx(0.6)


def test_one_kind_alone() -> None:
    found = measure([answer("a")], ["a"], ["a"])
    assert (found.unknown_auroc, found.retrieval_auroc, found.rejected_unknown) == (None, None, None)
    with pytest.raises(CorpusError, match="no query has a label of the index"):
        measure([answer("a")], ["x"], ["a"])


def test_confusion_counts_rows_of_truth() -> None:
    names, counts = confusion(
        [answer("a"), answer("unknown"), answer("b"), answer("b")], ["a", "a", "b", "c"]
    )
    assert names == ("a", "b", "c", "unknown")
    assert counts.tolist() == [[1, 0, 0, 1], [0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
