"""A labelled folder replayed as if it were unlabelled, with the true labels as the reviewer.

What it costs: a single photo one look, a group as many as it has representatives. The reviewer sees nothing
else. Where all representatives are of one label, the whole group gets it, errors included; else only they
get theirs, and what is left of the group comes photo by photo. After every few looks the index learns what
was labelled, and decides about all others anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from lmm_classifier.errors import CorpusError
from lmm_classifier.labelling.acquisition import Answers, QueuedItem, order
from lmm_classifier.labelling.clustering import SMALLEST, Proposal, propose
from lmm_classifier.labelling.incremental import IncrementalClassifier
from lmm_classifier.types import UNKNOWN, Float64Array, FloatArray, IntArray

_EVERY = 8
"""Looks after which the index learns; it is recalibrated then, which takes seconds."""
_NOT_GIVEN, _NOWHERE = -1, -2  # no label by the reviewer; an answer that is the label of no photo here


@dataclass(frozen=True, slots=True, eq=False)
class Review:
    """How a review went, at its start and each time the index had learned; p points.

    Attributes:
        looked_at: int64 (p,), photos looked at, from 0.
        accuracy: float64 (p,), share of all photos whose label is right: the one given in the review, else
            the one answered. UNKNOWN is wrong.
        accuracy_untouched: float64 (p,), the same of the photos that nobody looked at and no group gave a
            label; NaN where there are none.
        untouched: int64 (p,), how many these are.
        unknown: int64 (p,), how many of these are answered UNKNOWN.
        labels: int64 (p,), labels of the index.
        given_wrong: photos that a group gave a wrong label.
    """

    looked_at: IntArray
    accuracy: Float64Array
    accuracy_untouched: Float64Array
    untouched: IntArray
    unknown: IntArray
    labels: IntArray
    given_wrong: int


def simulate(
    learner: IncrementalClassifier,
    vectors: Sequence[FloatArray],
    truths: Sequence[str],
    *,
    by: Literal["queue", "random"] = "queue",
    looks: int = 40,
    every: int = _EVERY,
    recalibrate: bool = True,
    smallest: int = SMALLEST,
    seed: int = 0,
) -> Review:
    """Review so many photos of a folder.

    Args:
        learner: the index and its decision before the review.
        vectors: per encoder float32 (n, d), unit rows of the folder.
        truths: their n labels.
        by: the queue's order, with groups of what is unknown at the start, or photo by photo at random.
        looks: photos looked at, at most; a group that would go beyond is shown in part, and gets no label.
        every: looks after which the index learns.
        recalibrate: whether head, novelty score and gates are fitted anew then, as the product asks for.
        smallest: photos of a group, at least.
        seed: of the random order, and of the groups where there are very many photos.

    Raises:
        CorpusError: photos and labels differ in number, or one is labelled UNKNOWN.
    """
    if {len(each) for each in vectors} != {len(truths)}:
        raise CorpusError(f"{len(truths)} labels for {[len(each) for each in vectors]} vectors")
    if UNKNOWN in truths:
        raise CorpusError(f"{UNKNOWN!r} is no label that a reviewer gives")
    if every < 1:
        raise ValueError(f"every must be at least 1, got {every}")
    state = _State(learner, tuple(vectors), truths, every, recalibrate, looks)
    if by == "queue":
        _by_queue(state, smallest, seed)
    else:
        for row in np.random.default_rng(seed).permutation(len(truths))[:looks].tolist():
            state.look(np.asarray([row]), np.asarray([row]))
    state.learn()
    return state.review()


def looks_needed(reviews: Sequence[Review], accuracy: float) -> float | None:
    """Looks until the mean accuracy of reviews reaches a level, on the line between two points.

    Args:
        reviews: repetitions; each is read on the straight line between its points.
        accuracy: the level, in [0, 1].

    Returns:
        None where the mean does not reach it as far as all of them go.
    """
    last = min(int(review.looked_at[-1]) for review in reviews)
    grid = np.arange(last + 1)
    mean = np.mean([np.interp(grid, r.looked_at, r.accuracy) for r in reviews], axis=0)
    there = np.flatnonzero(mean >= accuracy)
    if not there.size:
        return None
    first = int(there[0])
    if first == 0:
        return 0.0
    return float(first - (mean[first] - accuracy) / (mean[first] - mean[first - 1]))


class _State:
    """Where a review stands."""

    def __init__(
        self,
        learner: IncrementalClassifier,
        vectors: tuple[FloatArray, ...],
        truths: Sequence[str],
        every: int,
        recalibrate: bool,
        budget: int,
    ) -> None:
        self.learner, self.vectors = learner, vectors
        self.names = sorted(set(truths))
        self.truths = np.searchsorted(self.names, truths).astype(np.int64)
        self.given = np.full(len(truths), _NOT_GIVEN, np.int64)  # labels by the reviewer
        self.taught = np.zeros(len(truths), bool)
        self.answers: Answers = learner.answers(vectors)
        self.every, self.recalibrate, self.budget = every, recalibrate, budget
        self.looks = self.learned_at = 0
        self._points: list[tuple[int, float, float, int, int, int]] = []
        self._note()

    def look(self, shown: IntArray, rows: IntArray) -> None:
        """Look at photos, label them, and all of `rows` where all that were to be shown are of one label."""
        wanted = len(shown)
        shown = shown[: self.budget - self.looks]
        found = self.truths[shown]
        self.given[shown] = found
        if len(found) == wanted and len(set(found.tolist())) == 1:
            still = rows[self.given[rows] == _NOT_GIVEN]
            self.given[still] = found[0]
        self.looks += len(shown)
        if self.looks - self.learned_at >= self.every:
            self.learn()

    def learn(self) -> None:
        """Take in what was labelled since the last time."""
        new = np.flatnonzero((self.given != _NOT_GIVEN) & ~self.taught)
        if not new.size:
            return
        labels = [self.names[code] for code in self.given[new].tolist()]
        self.learner = self.learner.learned([each[new] for each in self.vectors], labels)
        if self.recalibrate:
            self.learner = self.learner.recalibrated()
        self.taught[new] = True
        self.answers = self.learner.answers(self.vectors)
        self.learned_at = self.looks
        self._note()

    def review(self) -> Review:
        """All points so far."""
        looked_at, accuracy, of_rest, rest, unknown, labels = zip(*self._points, strict=True)
        given = self.given != _NOT_GIVEN
        return Review(
            np.asarray(looked_at, np.int64),
            np.asarray(accuracy, np.float64),
            np.asarray(of_rest, np.float64),
            np.asarray(rest, np.int64),
            np.asarray(unknown, np.int64),
            np.asarray(labels, np.int64),
            int(np.sum(given & (self.given != self.truths))),
        )

    def _note(self) -> None:
        code = {name: i for i, name in enumerate(self.names)}
        answered = np.asarray([code.get(label, _NOWHERE) for label in self.answers.labels], np.int64)
        open_ = self.given == _NOT_GIVEN
        right = np.where(open_, answered, self.given) == self.truths
        of_rest = float(right[open_].mean()) if open_.any() else float("nan")
        unknown = int(np.sum(self.answers.unknown[open_]))
        self._points.append(
            (
                self.looks,
                float(right.mean()),
                of_rest,
                int(open_.sum()),
                unknown,
                len(self.learner.labels),
            )
        )


def _by_queue(state: _State, smallest: int, seed: int) -> None:
    proposals = _proposals(state, smallest, seed)
    while state.looks < state.budget:
        learned_at = state.learned_at
        items = _queue(state, proposals)
        if not items:
            return
        for item in items:  # until the index has learned, which reorders what is left
            state.look(item.look_at, item.rows)
            dissolved = state.given[item.rows] == _NOT_GIVEN
            if state.learned_at > learned_at or state.looks >= state.budget or dissolved.any():
                break


def _queue(state: _State, proposals: Sequence[Proposal]) -> tuple[QueuedItem, ...]:
    decided = np.flatnonzero(state.given != _NOT_GIVEN).tolist()
    return order(state.answers, state.vectors[0], state.learner.references[0], proposals, decided=decided)


def _proposals(state: _State, smallest: int, seed: int) -> tuple[Proposal, ...]:
    """Groups of what is answered UNKNOWN, with rows among all photos."""
    unknown = np.flatnonzero(state.answers.unknown)
    learner = state.learner
    found = propose(
        state.vectors[0][unknown], learner.references[0], learner.labels, smallest=smallest, seed=seed
    )
    return tuple(
        Proposal(unknown[each.members], unknown[each.representatives], each.cohesion, each.nearest)
        for each in found
    )
