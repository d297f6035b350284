from __future__ import annotations

import numpy as np
import pytest

from lmm_classifier.decision.fusion import LEAST, Fusion, decided, fused_logits, retrieval_probabilities
from lmm_classifier.types import Choice

CHOICE = Choice(("b", "unknown", "a"), np.log(np.asarray([0.2, 0.5, 0.3], np.float32)))


def test_retrieval_says_both_which_label_and_whether_any() -> None:
    found = retrieval_probabilities(CHOICE.options, ("a", "b"), np.asarray([0.9, 0.1], np.float32), 0.8)
    assert found == pytest.approx([0.08, 0.2, 0.72])
    none = retrieval_probabilities(("a",), ("a", "b"), np.asarray([0.0, 1.0], np.float32), 0.8)
    assert none == pytest.approx([LEAST])


def test_logits_by_hand() -> None:
    retrieval = np.asarray([0.08, 0.2, 0.72])
    product = fused_logits(Fusion(), CHOICE, retrieval)
    assert np.exp(product) == pytest.approx([0.2 * 0.08, 0.5 * 0.2, 0.3 * 0.72])
    weighed = fused_logits(Fusion(0.5, 2.0, 1.0), CHOICE, retrieval)
    expected = [
        0.5 * np.log(0.08) + 2 * np.log(0.2),
        0.5 * np.log(0.2) + 2 * np.log(0.5) + 1,
        0.5 * np.log(0.72) + 2 * np.log(0.3),
    ]
    assert weighed == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("margin", "answer"), [(0.0, 1), (0.9, 1), (1.1, 2)])
def test_another_answer_must_lead_by_the_margin(margin: float, answer: int) -> None:
    assert decided(Fusion(margin=margin), np.asarray([0.0, 3.0, 2.0]), 2) == answer


def test_retrievals_own_answer_needs_no_margin() -> None:
    assert decided(Fusion(margin=9.0), np.asarray([0.0, 3.0, 2.0]), 1) == 1
