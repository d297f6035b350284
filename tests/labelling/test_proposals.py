"""Groups of unknown photos: planted ones, and three species of flowers that the corpus has never seen."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import adjusted_rand_score

from lmm_classifier.decision.reference import Moments, Reference, fit_reference
from lmm_classifier.labelling.proposals import propose
from lmm_classifier.types import FloatArray, IntArray

LABELS = tuple("abcdef")


def blobs(n_labels: int, n: int, spread: float, seed: int) -> tuple[FloatArray, IntArray]:
    """Unit vectors in 32 dimensions around n_labels directions."""
    random = np.random.default_rng(seed)
    centres = random.normal(size=(n_labels, 32))
    codes = np.repeat(np.arange(n_labels), n)
    found = centres[codes] + spread * random.normal(size=(len(codes), 32))
    return (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32), codes


def reference(spread: float = 0.3) -> Reference:
    vectors, codes = blobs(6, 40, spread, seed=1)
    return fit_reference(Moments.of(iter([(vectors, codes)]), 6, 32))


@pytest.mark.parametrize("n_groups", [2, 3, 5])
def test_planted_groups_are_found(n_groups: int) -> None:
    vectors, truth = blobs(n_groups, 25, 0.3, seed=n_groups)
    proposals = propose(vectors, reference(), LABELS)
    assert len(proposals) == n_groups
    found = np.full(len(vectors), -1)
    for number, proposal in enumerate(proposals):
        found[proposal.members] = number
    assert adjusted_rand_score(truth, found) > 0.95
    assert all(0 < proposal.cohesion <= 1 for proposal in proposals)
    assert all(len(proposal.nearest) == 3 for proposal in proposals)


def test_the_first_members_are_nearest_to_the_middle() -> None:
    vectors, _ = blobs(2, 25, 0.3, seed=2)
    for proposal in propose(vectors, reference(), LABELS):
        assert proposal.representatives.tolist() == proposal.members[:6].tolist()


def test_of_a_handful_nothing_is_proposed() -> None:
    vectors, _ = blobs(2, 3, 0.3, seed=3)
    assert propose(vectors, reference(), LABELS) == ()
