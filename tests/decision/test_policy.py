from __future__ import annotations

import numpy as np
import pytest

from lmm_classifier.decision.policy import Thresholds, judge, weigh

CUT = Thresholds(confidence=0.6, open_set=0.4, min_delta=0.1)


@pytest.mark.parametrize(
    ("row", "status", "because"),
    [
        ([0.7, 0.1], "known", "confidence_threshold"),
        ([0.6, 0.1], "known", "confidence_threshold"),  # confidence is reached with >=
        ([0.59, 0.1], "uncertain", "confidence_threshold"),
        ([0.45, 0.40], "uncertain", "confidence_threshold"),  # near two classes: ambiguous, not unknown
        ([0.2, 0.15], "unknown", "open_set_threshold"),
        ([0.4], "uncertain", "confidence_threshold"),  # the open-set cut is strict
        ([0.39], "unknown", "open_set_threshold"),
        ([0.65], "known", "confidence_threshold"),  # without a second label the lead is the score
        ([], "unknown", "no candidate"),
    ],
)
def test_documented_order(row: list[float], status: str, because: str) -> None:
    found, reason = judge(weigh(np.asarray(row, np.float32), sum(row)), CUT)
    assert (found, because in reason) == (status, True), reason


def test_a_small_lead_is_uncertain_however_high_the_score() -> None:
    tight = Thresholds(confidence=0.4, open_set=0.1, min_delta=0.1)
    assert judge(weigh(np.asarray([0.46, 0.44], np.float32), 0.9), tight)[0] == "uncertain"
    assert judge(weigh(np.asarray([0.55, 0.44], np.float32), 0.99), tight)[0] == "known"


def test_closed_set_never_says_unknown() -> None:
    closed = Thresholds(confidence=0.6, open_set=0.4, allow_unknown=False)
    assert judge(weigh(np.asarray([0.01, 0.0], np.float32), 0.01), closed)[0] == "uncertain"


def test_ties_go_to_the_first_label() -> None:
    assert weigh(np.asarray([0.3, 0.3, 0.1], np.float32), 0.7).best == 0
