from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lmm_classifier.decision.vote import weighted_vote


def scores(similarity: list[float], labels: list[str], temperature: float = 0.1) -> dict[str, float]:
    result = weighted_vote(np.asarray([similarity], np.float32), [labels], temperature)
    return dict(zip(result.labels, result.values[0].tolist(), strict=True))


def test_by_hand() -> None:
    # weights exp(0), exp(-1), exp(-2) over their sum 1 + e^-1 + e^-2
    total = 1 + math.exp(-1) + math.exp(-2)
    found = scores([0.9, 0.8, 0.7], ["cat", "dog", "cat"])
    assert found["cat"] == pytest.approx((0.9 + math.exp(-2) * 0.7) / total, abs=1e-6)
    assert found["dog"] == pytest.approx(math.exp(-1) * 0.8 / total, abs=1e-6)


def test_weights_are_normalised_over_the_neighbours_that_are_there() -> None:
    # Two neighbours in a row padded to five: the padding must not take part (facebookresearch/dinov2 #395).
    padded = weighted_vote(np.asarray([[0.5, 0.5, 0, 0, 0]], np.float32), [["a", "b"]])
    np.testing.assert_allclose(padded.values, [[0.25, 0.25]], atol=1e-6)


def test_one_class_alone_scores_its_similarity_whatever_its_count() -> None:
    assert scores([0.8], ["a"])["a"] == pytest.approx(0.8)
    assert scores([0.8] * 7, ["a"] * 7)["a"] == pytest.approx(0.8)


def test_neighbours_of_one_class_do_not_compete() -> None:
    # The flaw of per-neighbour decisions: two near neighbours of the same class looked like a tie.
    found = scores([0.90, 0.89, 0.50], ["cat", "cat", "dog"])
    assert found["cat"] > 0.85
    assert found["cat"] - found["dog"] > 0.8


def test_negative_similarity_is_no_evidence() -> None:
    assert scores([-0.5, -0.6], ["a", "b"]) == {"a": 0.0, "b": 0.0}


def test_without_neighbours_there_are_no_labels() -> None:
    result = weighted_vote(np.zeros((2, 0), np.float32), [[], []])
    assert result.labels == ()
    assert result.values.shape == (2, 0)


@given(
    st.lists(st.tuples(st.floats(-1, 1, width=32), st.sampled_from("abc")), min_size=1, max_size=30),
    st.floats(0.01, 10),
)
def test_rows_sum_to_the_weighted_mean_similarity(rows: list[tuple[float, str]], temperature: float) -> None:
    rows = sorted(rows, reverse=True)
    similarity = np.asarray([[s for s, _ in rows]], np.float32)
    values = weighted_vote(similarity, [[label for _, label in rows]], temperature).values
    weights = np.exp((similarity - similarity.max()).astype(np.float64) / temperature)
    expected = float((weights * similarity.clip(0)).sum() / weights.sum())
    assert values.min() >= 0
    assert values.max() <= 1
    assert float(values.sum()) == pytest.approx(expected, abs=1e-5)
