"""A review replayed: what it costs is counted by hand, and the queue saves looks on flowers."""

from __future__ import annotations

import numpy as np
import pytest

from clusters import clusters
from flower_splits import Flowers, FlowerSplit, flower_split
from lmm_classifier.errors import CorpusError
from lmm_classifier.labelling.incremental import IncrementalClassifier
from lmm_classifier.labelling.simulation.replay import Review, looks_needed, simulate
from lmm_classifier.types import UNKNOWN, FloatArray


def photos(labels: int, n: int, seed: int) -> tuple[FloatArray, list[str]]:
    vectors, codes = clusters(labels, n, 0.25, seed)
    return vectors, [f"l{code}" for code in codes]


@pytest.fixture(scope="module")
def learner() -> IncrementalClassifier:
    return IncrementalClassifier.calibrated([photos(4, 30, 1)[0]], photos(4, 30, 1)[1])


def test_two_new_labels_cost_two_groups(learner: IncrementalClassifier) -> None:
    vectors, truths = photos(6, 30, 2)  # l4 and l5 are new
    review = simulate(learner, [vectors], truths, looks=8, every=4, recalibrate=False)
    assert review.looked_at.tolist() == [0, 4, 8]
    assert review.labels.tolist() == [4, 5, 6]
    known = learner.answers([vectors]).labels
    assert review.accuracy[0] == pytest.approx(np.mean(np.asarray(known) == np.asarray(truths)))
    assert review.accuracy[0] <= 4 / 6
    assert review.accuracy[-1] > 0.95
    assert review.given_wrong == 0


def test_random_order_costs_a_look_per_photo(learner: IncrementalClassifier) -> None:
    vectors, truths = photos(6, 5, 2)
    review = simulate(learner, [vectors], truths, by="random", looks=100, every=10, recalibrate=False)
    assert review.looked_at.tolist() == [0, 10, 20, 30]
    assert review.untouched.tolist() == [30, 20, 10, 0]
    assert review.accuracy[-1] == 1.0
    assert np.isnan(review.accuracy_untouched[-1])
    assert review.labels[-1] == 6


def test_the_reviewer_sees_representatives_only(learner: IncrementalClassifier) -> None:
    vectors, truths = photos(5, 40, 3)
    clean = simulate(learner, [vectors], truths, looks=4, every=4, recalibrate=False)
    wrong = [i for i, label in enumerate(truths) if label == "l4"]
    given = 0
    for row in wrong:  # another label for one photo: it is shown, or it gets the label of its group
        other = list(truths)
        other[row] = "l0"
        review = simulate(learner, [vectors], other, looks=4, every=4, recalibrate=False)
        given += review.given_wrong
        assert review.given_wrong in (0, 1)
        if review.given_wrong == 0:  # it was shown, and the group got no label, or it is a straggler
            assert review.untouched[-1] in (len(truths) - 4, clean.untouched[-1])
    assert 30 <= given <= 36


def test_what_is_not_shown_in_full_gets_no_label(learner: IncrementalClassifier) -> None:
    vectors, truths = photos(5, 40, 3)
    review = simulate(learner, [vectors], truths, looks=2, every=4, recalibrate=False)
    assert review.looked_at.tolist() == [0, 2]
    assert review.untouched[-1] == len(truths) - 2


def test_bad_labels_are_refused(learner: IncrementalClassifier) -> None:
    vectors, truths = photos(4, 5, 2)
    with pytest.raises(CorpusError, match="19 labels for"):
        simulate(learner, [vectors], truths[:-1])
    with pytest.raises(CorpusError, match="'unknown' is no label that a reviewer gives"):
        simulate(learner, [vectors], [UNKNOWN, *truths[1:]])


def review_of(looked_at: list[int], accuracy: list[float]) -> Review:
    zeros = np.zeros(len(looked_at), np.int64)
    return Review(np.asarray(looked_at), np.asarray(accuracy), np.asarray(accuracy), zeros, zeros, zeros, 0)


def test_looks_are_read_on_the_mean_curve() -> None:
    reviews = [review_of([0, 10, 20], [0.5, 0.7, 0.8]), review_of([0, 20], [0.5, 1.0])]
    assert looks_needed(reviews, 0.5) == 0
    assert looks_needed(reviews, 0.725) == pytest.approx(10)
    assert looks_needed(reviews, 0.8125) == pytest.approx(15)
    assert looks_needed(reviews, 0.91) is None


def replayed(
    splits: list[FlowerSplit], recalibrate: bool, looks: int
) -> tuple[list[Review], float | None, float]:
    """Reviews of 40 looks in the queue's order, and looks until an accuracy of .93: there, and at random."""
    queue, chance = [], []
    for number, split in enumerate(splits):
        truths = split.truths.tolist()
        queue.append(simulate(split.learner, [split.vectors], truths, recalibrate=recalibrate))
        chance += [
            simulate(
                split.learner,
                [split.vectors],
                truths,
                by="random",
                looks=looks,
                every=20,
                recalibrate=recalibrate,
                seed=seed,
            )
            for seed in (number, 100 + number)
        ]
    return queue, looks_needed(queue, 0.93), looks_needed(chance, 0.93) or looks


def test_forty_looks_at_flowers(one_split: FlowerSplit) -> None:
    [review], needed, at_random = replayed([one_split], recalibrate=False, looks=60)
    assert review.labels[-1] == 12
    assert review.accuracy[-1] >= 0.93
    assert needed is not None
    assert needed <= 0.7 * at_random


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_forty_looks_at_flowers_six_times(flowers: Flowers) -> None:
    splits = [flower_split(flowers, seed) for seed in range(6)]
    queue, needed, at_random = replayed(splits, recalibrate=True, looks=100)
    assert [review.labels[-1] for review in queue] == [12] * 6
    assert np.mean([review.accuracy[-1] for review in queue]) >= 0.93
    assert needed is not None
    assert needed <= 0.7 * at_random
