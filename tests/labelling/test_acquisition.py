"""The order of review, against orders computed by hand."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import jensenshannon

from lmm_classifier.decision.reference import Moments, Reference, fit_reference
from lmm_classifier.labelling.acquisition import Answers, disagreement, order
from lmm_classifier.labelling.clustering import Proposal
from lmm_classifier.types import UNKNOWN, FloatArray

# A reference whose whitening only scales, so that the cosines below are those that the queue sees.
IDENTITY = Reference(
    counts=np.ones(2, np.float32),
    prototypes=np.eye(2, 4, dtype=np.float32),
    mean=np.zeros(4, np.float32),
    projection=np.zeros((4, 1), np.float32),
    centres=np.zeros((2, 1), np.float32),
    spread=np.full(1, 2, np.float32),
    whitening=np.eye(4, dtype=np.float32),
)


def answers(*said: tuple[str, float]) -> Answers:
    """Of each photo the answer and the chance of it."""
    n = len(said)
    return Answers(
        labels=tuple(label for label, _ in said),
        suggestions=tuple("a" if label == UNKNOWN else label for label, _ in said),
        chances=np.asarray([chance for _, chance in said], np.float64),
        closeness=np.full(n, 0.5),
        possible=((),) * n,
        p_values=np.full(n, 0.25),
        disagreement=np.zeros(n),
    )


def axes(*which: int) -> FloatArray:
    return np.eye(4, dtype=np.float32)[list(which)]


def group(*rows: int, shown: int = 2) -> Proposal:
    members = np.asarray(rows, np.int64)
    return Proposal(members, members[:shown], 0.5, (("a", 0.25),))


def test_single_photos_by_doubt_times_reach() -> None:
    # Doubts .5, .4, .4, .1; the photos 1 and 2 are alike, the others like none.
    said = answers(("a", 0.5), ("a", 0.6), ("b", 0.6), ("b", 0.9))
    items = order(said, axes(0, 1, 1, 2), IDENTITY)
    assert [item.rows.tolist() for item in items] == [[1], [2], [0], [3]]
    assert [item.priority for item in items] == pytest.approx([0.4 * 0.8, 0.4 * 0.8, 0.25, 0.01])
    assert [item.suggestion for item in items] == ["a", "b", "a", "b"]
    assert {item.kind for item in items} == {"photo"}


def test_likeness_counts_by_its_square_and_opposites_not_at_all() -> None:
    vectors = np.asarray([[1, 0, 0, 0], [0.6, 0.8, 0, 0], [-1, 0, 0, 0]], np.float32)
    items = order(answers(("a", 0.5), ("a", 0.5), ("a", 0.5)), vectors, IDENTITY)
    priority = {int(item.rows[0]): item.priority for item in items}
    assert priority == pytest.approx({0: 0.5 * (0.5 + 0.18), 1: 0.5 * (0.5 + 0.18), 2: 0.25})


def test_unknown_photos_are_in_full_doubt_and_without_suggestion() -> None:
    items = order(answers(("a", 0.1), (UNKNOWN, 0.9)), axes(0, 1), IDENTITY)
    assert [(item.rows.tolist(), item.suggestion) for item in items] == [([1], None), ([0], "a")]
    assert items[0].reason == (
        "unknown, nearest 'a', closeness 0.500, p-value 0.250: doubt 1.00, like 1.0 doubtful photos"
    )


def test_a_group_counts_its_doubt_per_look() -> None:
    said = answers(*[(UNKNOWN, 0.0)] * 3, ("a", 0.75))
    first, second = order(said, axes(0, 0, 0, 1), IDENTITY, [group(0, 1, 2)])
    assert (first.kind, first.rows.tolist(), first.look_at.tolist()) == ("group", [0, 1, 2], [0, 1])
    assert first.priority == pytest.approx(3 / 2)
    assert first.suggestion is None
    assert "about 3.0 wrong answers for 2 looks" in first.reason
    assert (second.kind, second.rows.tolist()) == ("photo", [3])


def test_a_group_is_offered_the_label_that_most_of_it_is_answered_by_now() -> None:
    said = answers(("b", 0.9), ("b", 0.9), (UNKNOWN, 0.0))
    (item,) = order(said, axes(0, 0, 0), IDENTITY, [group(0, 1, 2)])
    assert item.suggestion == "b"
    assert item.priority == pytest.approx((0.1 + 0.1 + 1) / 2)
    assert "2 of them answered 'b' by now" in item.reason


def test_a_group_that_had_its_turn_comes_photo_by_photo() -> None:
    said = answers(*[(UNKNOWN, 0.0)] * 3)
    items = order(said, axes(0, 1, 2), IDENTITY, [group(0, 1, 2)], decided=[1])
    assert [(item.kind, item.rows.tolist()) for item in items] == [("photo", [0]), ("photo", [2])]


def test_encoders_that_differ_raise_the_doubt() -> None:
    said = replace(answers(("a", 0.9), ("a", 0.9)), disagreement=np.asarray([0.0, 0.5]))
    assert said.doubts.tolist() == pytest.approx([0.1, 0.55])
    first, _ = order(said, axes(0, 1), IDENTITY)
    assert first.rows.tolist() == [1]
    assert "encoders differ by 0.50" in first.reason


def test_disagreement_is_the_jensen_shannon_divergence() -> None:
    random = np.random.default_rng(0)
    codes = np.repeat([0, 1], 30)
    spaces, references = [], []
    for dim in (5, 7):
        vectors = random.normal(size=(60, dim)) + codes[:, None] * np.eye(dim)[0] * 2
        vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
        spaces.append(vectors)
        references.append(fit_reference(Moments.of(iter([(vectors, codes)]), 2, dim)))
    found = disagreement(spaces, references)
    said = []
    for vectors, reference in zip(spaces, references, strict=True):
        projected = reference.project(vectors)
        logits = reference.log_prior - reference.squared_distances(projected) / 2
        said.append(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))
    expected = [jensenshannon(a, b, base=2) ** 2 for a, b in zip(*said, strict=True)]
    assert found == pytest.approx(np.asarray(expected), abs=1e-5)
    assert disagreement(spaces[:1], references[:1]).tolist() == [0.0] * 60


def test_columns_and_vectors_of_another_length_are_refused() -> None:
    said = answers(("a", 0.5), ("a", 0.5))
    with pytest.raises(ValueError, match="columns of answers differ in length"):
        replace(said, chances=np.zeros(3))
    with pytest.raises(ValueError, match=r"vectors must be \(2, 4\), got \(3, 4\)"):
        order(said, axes(0, 1, 2), IDENTITY)


def test_nothing_is_left() -> None:
    assert order(answers(("a", 0.5)), axes(0), IDENTITY, decided=[0]) == ()
    assert order(answers(), axes(), IDENTITY) == ()


@pytest.fixture(scope="module")
def many() -> tuple[Any, ...]:
    """What the queue of 20,000 photos is made of."""
    n, dim, random = 20_000, 1024, np.random.default_rng(0)
    vectors = random.normal(size=(n, dim)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    codes = np.arange(n) % 10
    reference = fit_reference(Moments.of(iter([(vectors[:500], codes[:500])]), 10, dim))
    said = answers(*[("a", chance) for chance in random.uniform(size=n)])
    proposals = [group(*range(start, start + 100), shown=4) for start in range(0, 5000, 100)]
    return said, vectors, reference, proposals


def test_twenty_thousand_photos_are_each_in_the_queue_once_in_order(many: tuple[Any, ...]) -> None:
    items = order(*many)
    assert sorted(np.concatenate([item.rows for item in items]).tolist()) == list(range(20_000))
    priorities = [item.priority for item in items]
    assert priorities == sorted(priorities, reverse=True)


@pytest.mark.timing
def test_twenty_thousand_photos_are_ordered_within_two_seconds(many: tuple[Any, ...]) -> None:
    started = time.perf_counter()
    order(*many)
    assert time.perf_counter() - started < 2
