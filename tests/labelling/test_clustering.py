"""Groups of unknown photos: planted ones, and three species of flowers that the corpus has never seen."""

from __future__ import annotations

import statistics
import time

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from flower_splits import Flowers, FlowerSplit, flower_split
from lmm_classifier.decision.reference import Moments, Reference, fit_reference
from lmm_classifier.labelling.clustering import MOST_COMPARED, Proposal, propose
from lmm_classifier.types import FloatArray, IntArray

LABELS = tuple("abcdef")


def blobs(n_labels: int, n: int, spread: float, seed: int, dim: int = 32) -> tuple[FloatArray, IntArray]:
    """Unit vectors around n_labels directions."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(n_labels, dim))
    codes = np.repeat(np.arange(n_labels), n)
    found = centres[codes] + spread * random.normal(size=(len(codes), dim))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32), codes


def reference(labels: int = 6) -> Reference:
    vectors, codes = blobs(labels, 40, 0.3, seed=1)
    return fit_reference(Moments.of(iter([(vectors, codes)]), labels, 32))


def codes_of(proposals: tuple[Proposal, ...], n: int) -> IntArray:
    codes = np.full(n, -1, np.int64)
    for number, proposal in enumerate(proposals):
        assert (codes[proposal.members] == -1).all(), "a photo is in two groups"
        codes[proposal.members] = number
    return codes


@pytest.mark.parametrize("n_groups", [1, 2, 3, 5, 40])
def test_planted_groups_are_found(n_groups: int) -> None:
    vectors, truth = blobs(n_groups, 25, 0.3, seed=10 + n_groups)
    proposals = propose(vectors, reference(), LABELS)
    assert len(proposals) == n_groups
    assert adjusted_rand_score(truth, codes_of(proposals, len(vectors))) > 0.95
    assert all(0 < proposal.cohesion <= 1 for proposal in proposals)
    assert all(len(proposal.nearest) == 3 for proposal in proposals)


def test_strangers_to_all_groups_are_left_alone() -> None:
    vectors, truth = blobs(3, 25, 0.3, seed=3)
    single, _ = blobs(8, 1, 0.0, seed=99)
    proposals = propose(np.concatenate([vectors, single]), reference(), LABELS)
    codes = codes_of(proposals, len(vectors) + 8)
    assert (codes[len(vectors) :] == -1).all()
    assert adjusted_rand_score(truth, codes[: len(vectors)]) > 0.95


def test_the_nearest_label_is_that_which_the_group_lies_beside() -> None:
    known, codes = blobs(6, 40, 0.3, seed=1)
    beside = known[codes == 2][:1] + 0.6 * blobs(1, 20, 0.2, seed=8)[0]
    beside /= np.linalg.norm(beside, axis=1, keepdims=True)
    (proposal,) = propose(beside.astype(np.float32), reference(), LABELS)
    middle = beside.mean(axis=0) / np.linalg.norm(beside.mean(axis=0))
    prototype = known[codes == 2].mean(axis=0)
    assert proposal.nearest[0][0] == "c"
    assert proposal.nearest[0][1] == pytest.approx(middle @ prototype / np.linalg.norm(prototype), abs=1e-4)
    assert [cosine for _, cosine in proposal.nearest] == sorted(
        (c for _, c in proposal.nearest), reverse=True
    )


def test_representatives_lead_from_the_middle_to_the_edge() -> None:
    vectors, _ = blobs(2, 25, 0.3, seed=2)
    for proposal in propose(vectors, reference(), LABELS):
        assert len(proposal.members) == 25
        assert proposal.representatives.tolist() == proposal.members[[0, 8, 16, 24]].tolist()


@pytest.mark.parametrize("n", range(11))
def test_a_handful(n: int) -> None:
    vectors, _ = blobs(1, 11, 0.2, seed=3)
    proposals = propose(vectors[:n], reference(), LABELS)
    assert [len(proposal.members) for proposal in proposals] == ([n] if n >= 5 else [])


def test_equal_photos_are_one_group() -> None:
    vectors, _ = blobs(1, 1, 0.0, seed=4)
    (proposal,) = propose(np.repeat(vectors, 50, axis=0), reference(), LABELS)
    assert sorted(proposal.members.tolist()) == list(range(50))
    assert proposal.cohesion == pytest.approx(1, abs=1e-3)


def test_an_index_of_one_label() -> None:
    vectors, truth = blobs(3, 25, 0.3, seed=5)
    proposals = propose(vectors, reference(1), ("a",))
    assert {label for proposal in proposals for label, _ in proposal.nearest} == {"a"}
    assert adjusted_rand_score(truth, codes_of(proposals, len(vectors))) > 0.95


def test_the_same_call_gives_the_same_groups() -> None:
    vectors, _ = blobs(4, 25, 0.5, seed=6)
    first, second = (propose(vectors, reference(), LABELS, seed=3) for _ in range(2))
    assert [p.members.tolist() for p in first] == [p.members.tolist() for p in second]


def test_wrong_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match=r"vectors must be \(n, 32\), got \(4, 31\)"):
        propose(np.zeros((4, 31), np.float32), reference(), LABELS)
    with pytest.raises(ValueError, match="the reference has 6 labels, got 2"):
        propose(np.zeros((4, 32), np.float32), reference(), ("a", "b"))


def test_photos_beyond_those_compared_join_their_group() -> None:
    vectors, truth = blobs(8, 700, 0.3, seed=7)
    proposals = propose(vectors, reference(), LABELS)
    assert len(proposals) == 8
    codes = codes_of(proposals, len(vectors))
    assert adjusted_rand_score(truth, codes) > 0.9
    assert (codes >= 0).mean() > 0.9


@pytest.mark.timing
def test_photos_beyond_those_compared_cost_little() -> None:
    """Were they compared as well, twice as many would take four times as long."""
    vectors, _ = blobs(8, MOST_COMPARED // 4, 0.3, seed=7)
    assert len(vectors) == 2 * MOST_COMPARED

    def seconds(photos: np.ndarray) -> float:
        started = time.perf_counter()
        propose(photos, reference(), LABELS)
        return time.perf_counter() - started

    some, all_of_them = (
        statistics.median(seconds(photos) for _ in range(3)) for photos in (vectors[::2], vectors)
    )
    assert all_of_them < 2.5 * some


def rand_index(split: FlowerSplit) -> float:
    """Over the truly unknown photos that the run calls unknown, all stragglers as one cluster more."""
    asked = split.learner.answers([split.vectors]).unknown
    proposals = propose(split.vectors[asked], split.learner.references[0], split.learner.labels)
    codes, strange = codes_of(proposals, int(asked.sum())), split.strange[asked]
    return float(adjusted_rand_score(split.truths[asked][strange], codes[strange]))


def test_three_unseen_species(one_split: FlowerSplit) -> None:
    assert rand_index(one_split) >= 0.75  # measured .945


@pytest.mark.slow
def test_three_unseen_species_six_times(flowers: Flowers) -> None:
    assert np.mean([rand_index(flower_split(flowers, seed)) for seed in range(6)]) >= 0.75  # measured .865
