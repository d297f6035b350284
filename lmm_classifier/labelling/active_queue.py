"""The queue of a review, which learns from the answers: what is left is decided anew, and ordered anew."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from lmm_classifier.labelling.acquisition import QueuedItem, order
from lmm_classifier.labelling.cluster_store import Group, propose_groups, read_groups, write_groups
from lmm_classifier.labelling.clustering import Proposal
from lmm_classifier.labelling.review_items import ReviewItem
from lmm_classifier.labelling.run_context import (
    answers_of,
    context_of_run,
    learner_of,
    references_of,
    vectors_of,
)
from lmm_classifier.labelling.run_schema import as_text
from lmm_classifier.labelling.run_store import LabellingRun


class ActiveQueue:
    """What teaches most about a run, first.

    It learns where the index is calibrated and that of the run, without a closed list of labels or a text
    prior; else the order is that of the run's own answers. Head, novelty score and gates stay as calibrated.

    Args:
        run: what is reviewed. Where no groups were proposed, they are now.

    Raises:
        RunError: the run is damaged, or its index has other encoders by now.
        ConfigError, IndexFolderError: its index cannot be used.
    """

    def __init__(self, run: LabellingRun) -> None:
        self._readable, self._label_of = run.readable(), run.manifest.label_of
        self._vectors = vectors_of(run)
        context = context_of_run(run)
        self._reference = references_of(context)
        # an index that has grown since may have learned these photos already, and has another calibration
        self._learner = learner_of(context) if context.digest == run.manifest.index_digest else None
        self._answers = answers_of(run, self._vectors, self._reference)
        groups = read_groups(run)
        if groups is None:
            groups = propose_groups(run)
            write_groups(run, groups)
        place = self._place = {row: number for number, row in enumerate(self._readable.tolist())}
        self._groups = {min(group.members): group for group in groups}
        self._proposals = [_proposal(group, place) for group in groups]
        self._grouped = {place[row] for group in groups for row in group.members}

    def __call__(self, decided: Mapping[int, str | None]) -> tuple[ReviewItem, ...]:
        """The queue: every readable photo once.

        Groups stay, for an answer for a whole one can be taken back; photos by themselves that were decided
        come last, and count for no other.

        Args:
            decided: number of the photo in the run -> its label; None if it is not wanted.
        """
        labels = {self._place[row]: label for row, label in decided.items()}
        answers, reference = self._answers, self._reference[0]
        taught = sorted(number for number, label in labels.items() if label is not None)
        if self._learner is not None and taught:
            rows = np.asarray(taught, np.int64)
            given = [self._label_of(str(labels[number])) for number in taught]
            learned = self._learner.learned([vectors[rows] for vectors in self._vectors], given)
            answers, reference = learned.answers(self._vectors), learned.references[0]
        alone = set(range(len(answers))) - self._grouped
        groups = order(answers, self._vectors[0], reference, self._proposals, decided=alone)
        open_, past = (
            order(answers, self._vectors[0], reference, decided=set(range(len(answers))) - rows)
            for rows in (alone - labels.keys(), alone & labels.keys())
        )
        ahead = sorted((*groups, *open_), key=lambda queued: (-queued.priority, int(queued.rows.min())))
        return tuple(map(self._item, (*ahead, *past)))

    def _item(self, queued: QueuedItem) -> ReviewItem:
        rows, shown = (tuple(self._readable[each].tolist()) for each in (queued.rows, queued.look_at))
        group = self._groups.get(min(rows)) if queued.kind == "group" else None
        said = f'; captioned "{group.captions[0]}"' if group and group.captions else ""
        return ReviewItem(
            queued.kind,
            shown,
            rows,
            None if queued.suggestion is None else as_text(queued.suggestion),
            queued.priority,
            as_text(queued.reason) + said,
            group.id if group else None,
        )


def _proposal(group: Group, place: Mapping[int, int]) -> Proposal:
    members, shown = (
        np.asarray([place[row] for row in rows], np.int64) for rows in (group.members, group.representatives)
    )
    return Proposal(members, shown, group.cohesion, group.nearest)
