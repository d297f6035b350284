from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import softmax

from lmm_classifier.decision.text_prior import text_probabilities, with_text_prior
from lmm_classifier.types import Scores

NAMES = ("a", "b", "c", "d", "e")
WEIGHTS = st.floats(0, 1)


def by_label(scores: Scores) -> dict[str, float]:
    return dict(zip(scores.labels, scores.values[0].tolist(), strict=True))


def mixed(
    vote: dict[str, float], text: dict[str, float], with_images: str, weight: float
) -> dict[str, float]:
    scores = Scores(tuple(vote), np.asarray([[*vote.values()]], np.float32))
    probabilities = np.asarray([[*text.values()]], np.float32)
    return by_label(with_text_prior(scores, probabilities, tuple(text), set(with_images), weight))


class TestProbabilities:
    def test_by_hand(self) -> None:
        images = np.asarray([[1, 0], [0.6, 0.8]], np.float32)
        texts = np.asarray([[1, 0], [0, 1], [-1, 0]], np.float32)
        found = text_probabilities(images, texts, 0.5)
        first = 1 + math.exp(-2) + math.exp(-4)  # cosines 1, 0, -1 over 0.5, less the largest
        second = math.exp(-0.4) + 1 + math.exp(-2.8)  # cosines 0.6, 0.8, -0.6
        expected = [
            [1 / first, math.exp(-2) / first, math.exp(-4) / first],
            [math.exp(-0.4) / second, 1 / second, math.exp(-2.8) / second],
        ]
        assert found.dtype == np.float32
        np.testing.assert_allclose(found, expected, atol=1e-6)

    @given(arrays(np.float32, (3, 4), elements=st.floats(-1, 1, width=32)), st.floats(0.001, 10))
    def test_are_scipys_softmax(self, texts: np.ndarray, temperature: float) -> None:
        image = np.eye(1, 4, dtype=np.float32)
        expected = softmax(texts[:, 0].astype(np.float64) / temperature)
        np.testing.assert_allclose(text_probabilities(image, texts, temperature)[0], expected, atol=1e-6)


class TestMixture:
    def test_by_hand(self) -> None:
        # s = 0.6; a: 0.75 x 0.4 + 0.25 x 0.2 x 0.6; b: 0.75 x 0.2 + 0.25 x 0.1 x 0.6; new: 0.25 x 0.7
        found = mixed({"a": 0.4, "b": 0.2}, {"a": 0.2, "b": 0.1, "new": 0.7}, "ab", 0.25)
        assert found == pytest.approx({"a": 0.33, "b": 0.165, "new": 0.175}, abs=1e-6)
        assert sum(found.values()) == pytest.approx(0.6 + 0.25 * 0.7 * (1 - 0.6), abs=1e-6)

    def test_labels_of_either_join_in_order(self) -> None:
        found = mixed({"b": 0.5}, {"c": 0.5, "a": 0.5}, "abc", 0.5)
        assert [*found] == ["a", "b", "c"]
        assert found == pytest.approx({"a": 0.125, "b": 0.25, "c": 0.125})

    def test_an_image_far_from_everything_stays_far_where_every_label_has_images(self) -> None:
        # The flaw of adding probabilities as they are: 0.5 x 0.1 + 0.5 would pass a cut at 0.35.
        for weight in (0.0, 0.5, 1.0):
            found = mixed({"a": 0.06, "b": 0.04}, {"a": 0.999, "b": 0.001}, "ab", weight)
            assert sum(found.values()) == pytest.approx(0.1, abs=1e-6)

    def test_a_label_without_images_wins_once_the_weight_is_high_enough(self) -> None:
        # 0.6 (1 - w) against w: even at w = 0.375
        answers = []
        for weight in (0.0, 0.3, 0.37, 0.38, 0.7, 1.0):
            found = mixed({"a": 0.6}, {"a": 0.0, "new": 1.0}, "a", weight)
            answers.append(max(found, key=found.__getitem__))
        assert answers == ["a", "a", "a", "new", "new", "new"]

    def test_without_neighbours_only_labels_without_images_have_evidence(self) -> None:
        none = Scores((), np.zeros((2, 0), np.float32))
        found = with_text_prior(none, np.asarray([[0.3, 0.7]] * 2, np.float32), ("a", "b"), {"a"}, 0.5)
        np.testing.assert_allclose(found.values, [[0, 0.35]] * 2, atol=1e-6)

    def test_regions_do_not_mix(self) -> None:
        scores = Scores(("a",), np.asarray([[0.8], [0.2]], np.float32))
        found = with_text_prior(scores, np.asarray([[1, 0], [0, 1]], np.float32), ("a", "b"), {"a"}, 0.5)
        np.testing.assert_allclose(found.values, [[0.8, 0], [0.1, 0.5]], atol=1e-6)

    @given(
        arrays(np.float64, (2, 5), elements=st.floats(0, 1)),
        st.lists(WEIGHTS, min_size=2, max_size=5).map(sorted),
        st.sets(st.sampled_from(NAMES)),
    )
    def test_keeps_what_scores_promise_and_is_monotonic(
        self, raw: np.ndarray, weights: list[float], with_images: set[str]
    ) -> None:
        vote, text = raw / np.maximum(1, raw.sum(axis=1, keepdims=True))
        vote = np.where([name in with_images for name in NAMES], vote, 0)
        text = np.where(text.sum() > 1e-6, text / max(text.sum(), 1e-9), 0.2)
        scores = Scores(NAMES, vote[None].astype(np.float32))
        shares = text[None].astype(np.float32)
        found = [with_text_prior(scores, shares, NAMES, with_images, w).values[0] for w in weights]
        s, q = vote.sum(), text[[name not in with_images for name in NAMES]].sum()
        for values, w in zip(found, weights, strict=True):
            assert values.min() >= 0
            assert values.max() <= 1
            assert float(values.sum()) == pytest.approx(s + w * q * (1 - s), abs=1e-5)
        for j in range(5):  # towards what the text says of the label, and never back
            steps = np.diff([values[j] for values in found])
            assert (steps >= -1e-6).all() or (steps <= 1e-6).all()
            if NAMES[j] not in with_images:
                assert (steps >= -1e-6).all()
        assert all(step >= -1e-5 for step in np.diff([values.sum() for values in found]))
