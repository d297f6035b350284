from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from mapie.classification import SplitConformalClassifier
from sklearn.linear_model import LogisticRegression

from lmm_classifier.decision.conformal import conformal_sets, keeping_cut, p_values, set_cut
from lmm_classifier.decision.gates import Gates, route
from lmm_classifier.types import FloatArray, IntArray, Scores

GATES = Gates(known=0.3, sure=0.6, probability=0.2, keep_known=0.95, coverage=0.99, max_candidates=2)


def scores(*rows: tuple[float, ...], known: float = 0.9) -> Scores:
    values = np.asarray(rows, np.float32)
    return Scores(tuple("abcd")[: values.shape[1]], values, np.full(len(rows), known, np.float32))


def test_cut_by_hand() -> None:
    known = np.arange(1, 20) / 20  # 19 images: the new one is the lowest of 20 with probability 5 %
    assert keeping_cut(known, 0.95) == pytest.approx(0.05)
    assert keeping_cut(known, 0.90) == pytest.approx(0.10)
    assert keeping_cut(known, 0.96) == -np.inf  # too few to reject any


@pytest.mark.parametrize("keep", [0.99, 0.95, 0.9])
def test_rejection_of_fresh_images_is_what_was_asked(keep: float) -> None:
    rng = np.random.default_rng(0)
    rejected = [np.mean(rng.beta(8, 2, 2000) < keeping_cut(rng.beta(8, 2, 400), keep)) for _ in range(200)]
    assert np.mean(rejected) == pytest.approx(1 - keep, abs=0.003)


def test_p_values_by_hand_and_uniform_on_fresh_images() -> None:
    known = np.asarray([0.1, 0.2, 0.2, 0.4])
    assert p_values(known, np.asarray([0.05, 0.1, 0.2, 0.3, 0.9])) == pytest.approx([0.2, 0.4, 0.8, 0.8, 1.0])
    rng = np.random.default_rng(0)
    drawn = np.concatenate([p_values(np.sort(rng.random(200)), rng.random(200)) for _ in range(100)])
    for level in (0.01, 0.05, 0.1, 0.5):
        assert np.mean(drawn <= level) <= level + 0.005


def test_set_cut_agrees_with_mapie() -> None:
    rng = np.random.default_rng(0)
    means = rng.normal(size=(4, 6))
    y = rng.integers(0, 4, 900)
    x = means[y] + rng.normal(size=(900, 6))
    model = LogisticRegression().fit(x[:300], y[:300])
    oracle = SplitConformalClassifier(
        estimator=model, confidence_level=0.9, conformity_score="lac", prefit=True
    )
    oracle.conformalize(x[300:600], y[300:600])
    _, expected = oracle.predict_set(x[600:])
    fitted = model.predict_proba(x[300:600])
    cut = set_cut(fitted[np.arange(300), y[300:600]], 0.9)
    probabilities = model.predict_proba(x[600:])
    assert np.array_equal(probabilities >= cut, expected[:, :, 0])


def test_sets_of_fresh_images_hold_the_true_label_as_often_as_asked() -> None:
    rng = np.random.default_rng(0)

    def drawn(n: int) -> tuple[FloatArray, IntArray]:
        probabilities = rng.dirichlet([0.5] * 5, n)  # and the label is drawn by them
        return probabilities, np.asarray([rng.choice(5, p=row) for row in probabilities])

    covered = []
    for _ in range(40):
        (fitted, true), (fresh, label) = drawn(300), drawn(300)
        cut = set_cut(fitted[np.arange(300), true], 0.9)
        covered.append((fresh >= cut)[np.arange(300), label].mean())
    assert np.mean(covered) == pytest.approx(0.9, abs=0.01)


def test_a_set_always_holds_the_best_label() -> None:
    found = conformal_sets(np.asarray([[0.4, 0.35, 0.25], [0.9, 0.1, 0.0]], np.float32), 0.5)
    assert found.tolist() == [[True, False, False], [True, False, False]]


def test_few_images_vouch_for_the_least_of_their_probabilities() -> None:
    assert set_cut(np.asarray([0.9, 0.3, 0.6]), 0.99) == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("row", "known", "where", "possible"),
    [
        ((0.9, 0.1, 0.0), 0.9, "accept", ("a",)),
        ((0.6, 0.4, 0.0), 0.9, "rerank", ("a", "b")),
        ((0.3, 0.4, 0.3), 0.9, "review", ("b", "a", "c")),
        ((0.9, 0.1, 0.0), 0.5, "rerank", ("a", "unknown")),
        ((0.3, 0.4, 0.3), 0.5, "review", ("b", "a", "c", "unknown")),
        ((0.9, 0.1, 0.0), 0.3, "rerank", ("a", "unknown")),
        ((0.9, 0.1, 0.0), 0.29, "unknown", ()),
        ((0.9, 0.1, 0.0), 0.6, "accept", ("a",)),
    ],
)
def test_routing_by_what_remains_possible(
    row: tuple[float, ...], known: float, where: str, possible: tuple[str, ...]
) -> None:
    [found] = route(scores(row, known=known), GATES)
    assert (found.route, found.candidates) == (where, possible)


def test_a_closed_set_has_no_novelty_gate() -> None:
    closed = replace(GATES, allow_unknown=False)
    assert [r.route for r in route(scores((0.9, 0.1), (0.6, 0.4), known=0.0), closed)] == ["accept", "rerank"]


def test_a_label_may_have_a_cut_of_its_own() -> None:
    own = replace(GATES, per_label={"b": 0.7})
    found = route(scores((0.9, 0.1), (0.1, 0.9), known=0.65), own)
    assert [r.route for r in found] == ["accept", "unknown"]


def test_min_delta_admits_a_close_second() -> None:
    strict = replace(GATES, probability=0.5, min_delta=0.2)
    assert [r.route for r in route(scores((0.52, 0.48), (0.7, 0.3)), strict)] == ["rerank", "accept"]


def test_reasons_give_the_numbers() -> None:
    [unknown] = route(scores((0.9, 0.1), known=0.2), GATES)
    assert unknown.reason == "closeness 0.200 is below 0.300, which 95% of known images reach"
    [asked] = route(scores((0.6, 0.4), known=0.5), GATES)
    assert asked.reason == "possible: 'a' 0.600, 'b' 0.400; or unknown: closeness 0.500 is below 0.600"
