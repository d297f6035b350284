from __future__ import annotations

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from lmm_classifier.decision.heads import (
    MOST_DOUBT,
    HeadSettings,
    Queries,
    head_probabilities,
    knn,
    softmax,
)
from lmm_classifier.decision.novelty import Combination, novelty_scores
from lmm_classifier.decision.reference import Moments, Reference, fit_reference
from lmm_classifier.types import FloatArray, IntArray

C, D, K = 4, 16, 10


def unit(values: FloatArray) -> FloatArray:
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def corpus() -> tuple[FloatArray, IntArray]:
    rng = np.random.default_rng(0)
    codes = rng.choice(C, 200, p=[0.6, 0.2, 0.1, 0.1])
    return unit(rng.normal(size=(C, D))[codes] + 0.8 * rng.normal(size=(200, D))), codes


@pytest.fixture(scope="module")
def reference(corpus: tuple[FloatArray, IntArray]) -> Reference:
    return fit_reference(Moments.of(iter([corpus]), C, D))


@pytest.fixture(scope="module")
def queries(corpus: tuple[FloatArray, IntArray]) -> Queries:
    vectors, codes = corpus
    asked = unit(np.random.default_rng(1).normal(size=(50, D)))
    similarity = asked @ vectors.T
    near = np.argsort(-similarity, axis=1)[:, :K]
    return Queries((asked,), np.take_along_axis(similarity, near, 1), codes[near])


def test_knn_is_scikit_learns_with_the_same_weights(
    corpus: tuple[FloatArray, IntArray], queries: Queries, reference: Reference
) -> None:
    oracle = KNeighborsClassifier(5, weights=lambda d: np.exp((1 - d) / 0.1), metric="cosine").fit(*corpus)
    found = knn(queries, reference, 0, HeadSettings({"knn": 1.0}, 5, 0.1))
    assert found == pytest.approx(oracle.predict_proba(queries.vectors[0]), abs=1e-4)


def test_balance_divides_the_vote_by_a_power_of_the_images(queries: Queries, reference: Reference) -> None:
    plain = knn(queries, reference, 0, HeadSettings({"knn": 1.0}, K, 0.1))
    balanced = knn(queries, reference, 0, HeadSettings({"knn": 1.0}, K, 0.1, balance=0.5))
    expected = plain / np.sqrt(reference.counts)
    assert balanced == pytest.approx(expected / expected.sum(axis=1, keepdims=True), abs=1e-5)


def test_fusion_is_the_weighted_mean_of_log_probabilities(queries: Queries, reference: Reference) -> None:
    base = HeadSettings({}, K, 0.1)
    parts = {}
    for name in ("knn", "gda", "prototype"):
        one = HeadSettings({name: 1.0}, K, 0.1)
        parts[name] = head_probabilities(queries, [reference], one).astype(np.float64)
    weights = {"knn": 0.5, "gda": 0.3, "prototype": 0.9}
    logs = sum(w * np.log(parts[name]) for name, w in weights.items())
    expected = np.exp(logs) / np.exp(logs).sum(axis=1, keepdims=True)
    fused = HeadSettings(weights, base.k, base.temperature)
    assert head_probabilities(queries, [reference], fused) == pytest.approx(expected, abs=1e-5)


def test_no_single_head_has_a_veto(reference: Reference) -> None:
    one_sided = Queries(
        (reference.prototypes[1:2],), np.full((1, K), 0.5, np.float32), np.zeros((1, K), np.int64)
    )
    found = head_probabilities(one_sided, [reference], HeadSettings({"knn": 1.0}, K, 0.1))
    assert found[0, 1:] == pytest.approx(MOST_DOUBT / C, rel=1e-3)


def test_without_neighbours_all_labels_are_equal(reference: Reference) -> None:
    nobody = Queries((reference.prototypes[:1],), np.zeros((1, K), np.float32), np.full((1, K), -1, np.int64))
    assert knn(nobody, reference, 0, HeadSettings({"knn": 1.0}, K, 0.1)) == pytest.approx(1 / C)


def test_softmax_of_nothing_possible_is_zero() -> None:
    nothing = np.full((1, 3), -np.inf, np.float32)
    assert (softmax(nothing) == 0).all()


def test_scores_of_neighbours_by_hand(reference: Reference) -> None:
    # Similarities .9 .8 .7 of label 0, .6 of label 1; k = 4 and a temperature that makes all weights equal.
    by_hand = Queries(
        (reference.prototypes[:1],),
        np.asarray([[0.9, 0.8, 0.7, 0.6]], np.float32),
        np.asarray([[0, 0, 0, 1]], np.int64),
    )
    names = ["max_similarity", "kth_similarity", "class_margin", "vote_entropy", "guided_knn"]
    found = novelty_scores(names, by_hand, [reference], HeadSettings({"knn": 1.0}, 4, 1e6))[0]
    assert found[0] == pytest.approx(0.9)
    assert found[1] == pytest.approx(0.6)
    assert found[2] == pytest.approx(0.8 - 0.6)  # label 0: mean of its three; label 1: .6 and twice the last
    assert found[3] == pytest.approx(0.75 * np.log(0.75) + 0.25 * np.log(0.25))
    assert found[4] == pytest.approx(0.75 * 0.75)  # best share times the mean similarity


def test_a_batch_changes_no_answer(queries: Queries, reference: Reference) -> None:
    settings = HeadSettings({"knn": 0.5, "gda": 0.5}, 5, 0.1)
    names = ["max_similarity", "class_margin", "mahalanobis", "relative_mahalanobis"]
    heads, scores = (
        head_probabilities(queries, [reference], settings),
        novelty_scores(names, queries, [reference], settings),
    )
    for i in range(len(queries)):
        one = Queries((queries.vectors[0][[i]],), queries.similarity[[i]], queries.codes[[i]])
        assert head_probabilities(one, [reference], settings)[0] == pytest.approx(heads[i], abs=1e-5)
        assert novelty_scores(names, one, [reference], settings)[0] == pytest.approx(scores[i], rel=1e-3)


def test_combination_is_a_logistic_model() -> None:
    model = Combination(("a", "b"), (1.0, 2.0), (2.0, 4.0), (0.5, -1.0), 0.25)
    logit = 0.5 * (3 - 1) / 2 - 1.0 * (4 - 2) / 4 + 0.25
    scores = np.asarray([[3, 4]], np.float32)
    assert model.logits(scores)[0] == pytest.approx(logit)
    assert model.known(scores)[0] == pytest.approx(1 / (1 + np.exp(-logit)))
