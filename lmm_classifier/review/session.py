"""The queue of a run and how it stands: what was asked, what was said, what is left."""

from __future__ import annotations

import hashlib
import json
import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from itertools import islice

from lmm_classifier.errors import ConfigError
from lmm_classifier.labelling.annotation_log import LABELLING, Annotation, Photo, checked_label
from lmm_classifier.labelling.annotations import Annotations, contradict
from lmm_classifier.labelling.review_items import Order, ReviewItem
from lmm_classifier.labelling.run_schema import as_text
from lmm_classifier.labelling.run_store import LabellingRun
from lmm_classifier.review.background_reorder import BackgroundReorder
from lmm_classifier.review.schemas import (
    AnnotationRequest,
    AnnotationResponse,
    Member,
    Overview,
    PhotoEvidence,
    QueueEntry,
    ReviewerAnnotation,
    State,
    UndoRequest,
    UndoResponse,
)
from lmm_classifier.service.errors import HttpError
from lmm_classifier.types import UNKNOWN, required


class ReviewSession:
    """One reviewer before a queue. Others may be at work on the same run: each look reads what they said.

    Args:
        run: what is reviewed.
        order: makes the queue.
        reviewer: who answers.
        labels: known ones.

    Raises:
        RunError: the run or a log of decisions is damaged.
        ConfigError: this cannot be a reviewer's name.
    """

    def __init__(self, run: LabellingRun, order: Order, reviewer: str, labels: Iterable[str]) -> None:
        self.run, self.labels = run, frozenset(labels)
        columns = run.columns("path", "sha256", "label", "reason").to_pydict()
        self._answers = list(zip(columns["label"], columns["reason"], strict=True))
        self.photos: list[Photo | None] = [
            None if digest is None else (path, digest)
            for path, digest in zip(columns["path"], columns["sha256"], strict=True)
        ]
        self.rows = {photo: row for row, photo in enumerate(self.photos) if photo}
        self.verdicts = Annotations(run.folder)
        self.log = self.verdicts.log(reviewer)
        named = [str(run.folder.absolute()), run.manifest.started, self.log.reviewer]
        self.review = hashlib.sha256(json.dumps(named).encode()).hexdigest()
        self._lock = threading.Lock()
        self.verdicts.read()
        known = self.decided()
        self._take(order(known))
        self._learns = BackgroundReorder(order, self._take, known)

    def decided(self) -> dict[int, str | None]:
        """The photos that all who answered say the same of, and what; None: not wanted."""
        settled = self.verdicts.settled()
        return {self.rows[photo]: d.label for photo, d in settled.items() if photo in self.rows}

    def _take(self, items: Sequence[ReviewItem]) -> None:
        """Let this be the queue from now on."""
        with self._lock:
            self.items = items
            self.queued = frozenset(row for item in items for row in item.members)
            self.known = {item.key: item for item in items}
            self.groups = {row: item for item in items if item.kind == "group" for row in item.members}

    @contextmanager
    def look(self) -> Iterator[_Look]:
        """How things stand, while nobody else of this process says anything.

        Raises:
            RunError: a log was damaged meanwhile.
        """
        with self._lock:
            self.verdicts.read()
            yield _Look(self)

    def overview(self) -> Overview:
        """How far the review has come."""
        with self.look() as now:
            return now.overview()

    def queue(self, show: State, after: str | None, limit: int) -> tuple[QueueEntry, ...]:
        """What stands in this way.

        Args:
            show: in which way.
            after: key of the entry behind which to begin; None, and one that is not known, is the start.
            limit: at most so many.
        """
        with self.look() as now:
            items = list(now.items(show))
            start = next((i + 1 for i, item in enumerate(items) if item.key == after), 0)
            entries = (now.entry(item) for item in items[start:])
            return tuple(islice((entry for entry in entries if entry.state == show), limit))

    def members(self, key: str) -> tuple[Member, ...]:
        """The photos of an entry; refuses a key that there is not."""
        with self.look() as now:
            rows = self.item(key).members
            paths = [required(self.photos[row])[0] for row in rows]
            return tuple(
                Member(row, path, now.state(row), now.said(row))
                for row, path in zip(rows, paths, strict=True)
            )

    def evidence(self, row: int) -> PhotoEvidence:
        """All that is known of a photo; refuses one that there is not."""
        self.photo(row)
        found = self.run.row(row)
        answer = required(found.answer).to_dict()
        path = as_text(found.path)
        with self.look() as now:
            return PhotoEvidence(row, path, {**answer, "source": path}, now.said(row), now.state(row))

    def decide(self, answer: AnnotationRequest) -> AnnotationResponse:
        """Note an answer; it is on the disk when this returns.

        Raises:
            Refusal: it does not fit what it is about.
            RunError: it could not be written.
        """
        self._check_review(answer.review)
        item = self.item(answer.item)
        if not set(answer.rows) <= set(item.members):
            raise HttpError(400, "not_of_item", "a photo is not one of those that the decision is about")
        photos = [self.photo(row) for row in dict.fromkeys(answer.rows)]
        with self.look() as now:
            done = self.log.find(answer.id)  # the page asks again where it did not hear the answer
            if done is None:
                label = self._label(answer, item, now)
                done = self.log.say(answer.action, photos, label, item.group, answer.id)
        with self.look() as now:
            self._learns.heard(self.decided())
            rest = [self.item(f"photo-{row}") for row in now.left_out(item)]
            return AnnotationResponse(
                done.action,
                done.label,
                len(done.photos),
                now.entry(item),
                tuple(now.entry(each) for each in rest),
                now.overview(),
            )

    def undo(self, press: UndoRequest) -> UndoResponse:
        """Take the last decision back; on the disk when this returns.

        Raises:
            Refusal: it was pressed on the page of another review.
            RunError: it could not be written.
        """
        self._check_review(press.review)
        with self._lock:
            undone = self.log.undo(press.id)
        with self.look() as now:
            self._learns.heard(self.decided())
            if undone is None:
                return UndoResponse(None, None, 0, None, now.overview())
            item = self.known.get(f"group-{undone.group}")
            if item is None and undone.photos[0] in self.rows:
                item = self.item(f"photo-{self.rows[undone.photos[0]]}")
            entry = None if item is None else now.entry(item)
            return UndoResponse(undone.action, undone.label, len(undone.photos), entry, now.overview())

    @property
    def order(self) -> int:
        """Tells one queue from the next: how often it was made anew."""
        return self._learns.times

    def photo(self, row: int) -> Photo:
        """What a photo is known by; refuses a number that has none, or one that could not be read."""
        photo = self.photos[row] if 0 <= row < len(self.photos) else None
        if photo is None:
            raise HttpError(404, "no_photo", "the run has no such photo")
        return photo

    def item(self, key: str) -> ReviewItem:
        """What is asked under a key: an item of the queue, or any photo of the run; refuses anything else."""
        if key in self.known:
            return self.known[key]
        number = key.removeprefix("photo-")
        if number == key or not (number.isascii() and number.isdecimal()) or len(number) > 18:
            raise HttpError(404, "no_item", "the queue has no such item")
        row = int(number)
        self.photo(row)
        label, reason = self._answers[row]
        group = self.groups.get(row)
        suggestion = None if group is None else group.suggestion
        suggestion = suggestion if label == UNKNOWN else label
        return ReviewItem("photo", (row,), (row,), suggestion, 0.0, reason)

    def _check_review(self, review: str) -> None:
        if review != self.review:
            raise HttpError(409, "other_review", "another review runs here now; load the page again")

    def _label(self, answer: AnnotationRequest, item: ReviewItem, now: _Look) -> str | None:
        """The label that an answer gives, as it is kept."""
        if (answer.label is not None) != (answer.action in LABELLING):
            raise HttpError(
                400, "label", "this action has a label and should have none, or the other way round"
            )
        if answer.label is None:
            return None
        if answer.action == "accept":
            if answer.label not in {item.suggestion, *self.labels, *now.new_labels}:  # it may have been
                raise HttpError(409, "not_suggested", "this label is not the one that is suggested")
            return answer.label
        known = {label.casefold(): label for label in (*self.labels, *now.new_labels)}
        if answer.action == "relabel":
            if answer.label not in known.values():
                raise HttpError(409, "new_label", "there is no such label yet")
            return answer.label
        try:
            label = checked_label(answer.label)
        except ConfigError as error:
            raise HttpError(400, "bad_label", str(error)) from error
        if label.casefold() in known:
            raise HttpError(409, "known_label", "there is such a label already")
        return label


class _Look:
    """How things stand at one moment."""

    def __init__(self, session: ReviewSession) -> None:
        self._session = session
        self._said = session.verdicts.photos()
        self._groups = session.verdicts.groups()

    def state(self, row: int) -> State:
        """How a photo stands."""
        return self._state_of(self._of(row))

    def said(self, row: int) -> tuple[ReviewerAnnotation, ...]:
        """What each reviewer said of a photo."""
        return _told(self._of(row))

    def entry(self, item: ReviewItem) -> QueueEntry:
        """A question, and how it stands."""
        said = self._of(item.rows[0]) if item.group is None else self._groups.get(item.group, {})
        state = self.state(item.rows[0]) if item.group is None else self._of_group(item)
        return QueueEntry(
            item.key,
            item.kind,
            item.rows,
            len(item.members),
            item.suggestion,
            item.reason,
            state,
            _told(said),
        )

    def items(self, show: State) -> Iterator[ReviewItem]:
        """The queue; what was left out of a group that was decided stands behind it, photo by photo."""
        if show == "conflict":
            rows = (self._session.rows.get(photo) for photo, said in self._said.items() if contradict(said))
            yield from (
                self._session.item(f"photo-{row}") for row in sorted(r for r in rows if r is not None)
            )
            return
        for item in self._session.items:
            yield item
            yield from (self._session.item(f"photo-{row}") for row in self.left_out(item))

    def left_out(self, item: ReviewItem) -> list[int]:
        """The photos of a group that was decided as a whole which nobody included."""
        decided = self._groups.get(item.group or "", {})
        if not decided:
            return []
        included = {photo for decision in decided.values() for photo in decision.photos}
        return [row for row in item.members if self._session.photos[row] not in included]

    @cached_property
    def new_labels(self) -> tuple[str, ...]:
        """Labels that reviewers gave and the index has not."""
        standing = (d for log in self._session.verdicts.logs for d in log.standing.values())
        return tuple(sorted({d.label for d in standing if d.label} - self._session.labels))

    def overview(self) -> Overview:
        """How far the review has come."""
        session, rows = self._session, self._session.rows
        here = {rows[photo]: said for photo, said in self._said.items() if photo in rows}
        states = Counter(self._state_of(said) for row, said in here.items() if row in session.queued)
        states["open"] += len(session.queued) - states.total()
        answers = [[d.label for d in said.values() if d.answers] for said in here.values()]
        agreed = Counter(labels[0] for labels in answers if len(set(labels)) == 1)
        return Overview(
            reviewer=session.log.reviewer,
            photos=len(session.queued),
            states=states,
            rejected=agreed.pop(None, 0),
            labels={label: n for label, n in agreed.most_common() if label is not None},
            new_labels=self.new_labels,
            conflicts=sum(map(contradict, here.values())),
            strays=len(self._said) - len(here),
            undoable=len(session.log.standing),
            order=session.order,
        )

    def _of(self, row: int) -> Mapping[str, Annotation]:
        photo = self._session.photos[row]
        return {} if photo is None else self._said.get(photo, {})

    def _state_of(self, said: Mapping[str, Annotation]) -> State:
        if contradict(said):
            return "conflict"
        mine = said.get(self._session.log.reviewer)
        if mine is not None and mine.answers:
            return "mine"
        if any(decision.answers for decision in said.values()):
            return "others"
        return "open" if mine is None else "skipped"

    def _of_group(self, item: ReviewItem) -> State:
        """As it was decided as a whole; else by what is left to decide of it."""
        decided = self._groups.get(item.group or "", {})
        state = self._state_of(decided) if decided else "open"
        if state == "conflict":  # which its photos are, one by one
            return "mine" if self._session.log.reviewer in decided else "others"
        if state != "open":
            return state
        states = {self.state(row) for row in item.members}
        left: tuple[State, ...] = ("open", "skipped", "mine")
        return next((state for state in left if state in states), "others")


def _told(said: Mapping[str, Annotation]) -> tuple[ReviewerAnnotation, ...]:
    return tuple(ReviewerAnnotation(reviewer, d.action, d.label) for reviewer, d in sorted(said.items()))
