from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import f1_score, precision_recall_fscore_support

from lmm_classifier.api.classification import Candidate, Classification
from lmm_classifier.errors import ConfigError, CorpusError
from lmm_classifier.metrics.per_label import label_rows, macro_f1
from lmm_classifier.metrics.rerank import best_label, candidate_ranks, candidate_recall, offered
from lmm_classifier.types import UNKNOWN


def drawn_answers(seed: int) -> tuple[list[str], list[str]]:
    generator = np.random.default_rng(seed)
    names = np.asarray(["a", "b", "c", "zebra", UNKNOWN])
    truths = names[generator.integers(0, 5, 200)]
    answers = np.where(generator.random(200) < 0.6, truths, names[generator.integers(0, 5, 200)])
    return truths.tolist(), answers.tolist()


class TestLabels:
    def test_rows_are_scikit_learns(self) -> None:
        truths, answers = drawn_answers(0)
        rows = label_rows(truths, answers)
        names = [row.label for row in rows]
        assert names == ["a", "b", "c", "zebra", UNKNOWN]
        expected = precision_recall_fscore_support(truths, answers, labels=names, zero_division=0)
        found = [[row.precision, row.recall, row.f1, row.support] for row in rows]
        np.testing.assert_allclose(found, np.transpose(expected), atol=1e-9)
        pairs = list(zip(truths, answers, strict=True))
        for row in rows:
            assert row.answered == answers.count(row.label)
            assert row.rejected == pytest.approx(pairs.count((row.label, UNKNOWN)) / row.support)

    def test_a_label_never_answered_and_one_never_shown(self) -> None:
        a, b = label_rows(["a", "a"], ["b", UNKNOWN])[:2]
        assert (a.support, a.answered, a.precision, a.recall, a.f1, a.rejected) == (2, 0, 0, 0, 0, 0.5)
        assert (b.support, b.answered, b.precision, b.recall) == (0, 1, 0, 0)

    @pytest.mark.parametrize("seed", range(3))
    def test_macro_f1_is_scikit_learns_over_the_true_labels(self, seed: int) -> None:
        truths, answers = drawn_answers(seed)
        known = [(t, a) for t, a in zip(truths, answers, strict=True) if t != UNKNOWN]
        for pairs in (list(zip(truths, answers, strict=True)), known):
            true, given = map(list, zip(*pairs, strict=True))
            expected = f1_score(true, given, labels=sorted(set(true)), average="macro")
            assert macro_f1(true, given) == pytest.approx(expected, abs=1e-9)

    def test_a_query_that_counts_twice_is_two_queries(self) -> None:
        truths, answers = drawn_answers(4)
        counts = np.random.default_rng(5).integers(0, 3, (2, 200))
        together = macro_f1(truths, answers, counts.astype(float))
        for row in range(2):
            twice = [np.repeat(column, counts[row]).tolist() for column in (truths, answers)]
            assert together[row] == pytest.approx(macro_f1(*twice), abs=1e-9)

    def test_nonsense_is_refused(self) -> None:
        with pytest.raises(ConfigError, match="one per query"):
            macro_f1(["a"], [])
        with pytest.raises(CorpusError, match="no answers"):
            label_rows([], [])


def answer(label: str, candidates: list[tuple[str, float, float | None]]) -> Classification:
    return Classification(
        source="x",
        label=label,
        score=0.5,
        used_reranker=any(p is not None for _, _, p in candidates),
        status="unknown" if label == UNKNOWN else "known",
        stage="open_set",
        reason="",
        degraded=None,
        retrieval_label=label,
        closeness=0.5,
        candidates=tuple(Candidate(*c) for c in candidates),
        neighbours=(),
        thresholds=None,
        timings={},
    )


class TestReranking:
    asked = answer("b", [("a", 0.5, 0.3), ("b", 0.4, 0.6), ("c", 0.1, None), (UNKNOWN, 0.0, 0.1)])
    silent = answer(UNKNOWN, [("a", 0.2, None), ("b", 0.1, None)])

    def test_recall_is_the_share_whose_label_is_among_the_best(self) -> None:
        answers = [self.asked, self.asked, self.asked, self.silent, answer(UNKNOWN, [])]
        ranks = candidate_ranks(answers, ["a", "c", "d", "b", "a"])
        assert ranks.tolist() == [1, 3, 0, 2, 0]
        recalls = [float(candidate_recall(ranks, k)) for k in (1, 2, 3, 9)]
        assert recalls == pytest.approx([1 / 5, 2 / 5, 3 / 5, 3 / 5])
        assert candidate_recall(ranks, 2, np.asarray([[0, 3, 0, 1, 0.0]])) == pytest.approx([1 / 4])
        with pytest.raises(ConfigError, match="k must be"):
            candidate_recall(ranks, 0)

    def test_offered_is_what_the_reranker_could_have_chosen(self) -> None:
        answers = [self.asked, self.asked, self.asked, self.silent]
        assert offered(answers, ["a", "c", UNKNOWN, "a"]).tolist() == [True, False, True, False]

    def test_the_best_label_rejects_nothing(self) -> None:
        assert best_label(self.asked) == "b"
        assert best_label(self.silent) == "a"
        by_model = answer(UNKNOWN, [("a", 0.5, 0.1), ("b", 0.4, 0.3), (UNKNOWN, 0.0, 0.6)])
        assert best_label(by_model) == "b"
        assert best_label(answer(UNKNOWN, [])) == UNKNOWN
