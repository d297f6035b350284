"""What goes between the page of a review and its server."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from lmm_classifier.labelling.annotation_log import Number

State = Literal["open", "skipped", "mine", "others", "conflict"]
"""Of a photo or a group: nobody has answered; only I have seen it, and said nothing; I have answered; only
others have; answers differ."""
_MOST_ROWS = 100_000  # of a decision


@dataclass(frozen=True, slots=True)
class ReviewerAnnotation:
    """What a reviewer last said of something: the label where one was given."""

    reviewer: str
    action: str
    label: str | None


@dataclass(frozen=True, slots=True)
class QueueEntry:
    """A question of the queue, and how it stands.

    Attributes:
        key: what it is known by.
        kind: "photo" or "group".
        rows: numbers of the photos to look at first.
        size: photos that it is about.
        suggestion, reason: as a `ReviewItem` has them.
        state: how it stands.
        said: what each reviewer said of it.
    """

    key: str
    kind: Literal["photo", "group"]
    rows: tuple[int, ...]
    size: int
    suggestion: str | None
    reason: str
    state: State
    said: tuple[ReviewerAnnotation, ...]


@dataclass(frozen=True, slots=True)
class Member:
    """A photo of a group; `path` is for people."""

    row: int
    path: str
    state: State
    said: tuple[ReviewerAnnotation, ...]


@dataclass(frozen=True, slots=True)
class PhotoEvidence:
    """All that is known of a photo.

    Attributes:
        row: its number.
        path: for people.
        answer: the classifier's, as `Classification` has it, with candidates and neighbours.
        said: what each reviewer said of it.
        state: how it stands.
    """

    row: int
    path: str
    answer: Mapping[str, Any]
    said: tuple[ReviewerAnnotation, ...]
    state: State


@dataclass(frozen=True, slots=True)
class Overview:
    """How far the review has come.

    Attributes:
        reviewer: who answers here.
        photos: of the queue.
        states: how many of them stand in which way.
        labels: label -> photos that have it by all who answered, most first.
        rejected: photos that nobody wants.
        new_labels: that reviewers made.
        conflicts: photos whose answers differ, be they of the queue or not.
        strays: photos that were decided and are not in the run, which must have been made anew.
        undoable: decisions of one's own that can be taken back.
        order: tells one queue from the next: how often it was made anew of what was decided.
    """

    reviewer: str
    photos: int
    states: Mapping[State, int]
    labels: Mapping[str, int]
    rejected: int
    new_labels: tuple[str, ...]
    conflicts: int
    strays: int
    undoable: int
    order: int


@dataclass(frozen=True, slots=True)
class ReviewInfo:
    """What does not change during a review.

    Attributes:
        review: what tells it from others: of another run, by another reviewer, of a run made anew.
        run, folder: name of its folder, and its path as it was given.
        source: what was labelled.
        finished: whether the run is.
        labels: of the index.
        pictured: whether the neighbours' pictures can be shown.
    """

    review: str
    run: str
    folder: str
    source: str
    finished: bool
    labels: tuple[str, ...]
    pictured: bool


@dataclass(frozen=True, slots=True)
class AnnotationResponse:
    """That a decision is on the disk.

    Attributes:
        action, label, photos: of it; photos is how many.
        entry: what it was about, as it stands now.
        rest: of a group, the photos that were left out of it, each of which is a question now.
        overview: how far the review has come.
    """

    action: str
    label: str | None
    photos: int
    entry: QueueEntry
    rest: tuple[QueueEntry, ...]
    overview: Overview


@dataclass(frozen=True, slots=True)
class UndoResponse:
    """What was taken back: None where there was nothing.

    Attributes:
        action, label, photos: of the decision that no longer counts; photos is how many.
        entry: what it was about, as it stands now; None where the run has it no more.
        overview: how far the review has come.
    """

    action: str | None
    label: str | None
    photos: int
    entry: QueueEntry | None
    overview: Overview


class AnnotationRequest(BaseModel):
    """A key press.

    Attributes:
        id: made by the page; one that is sent twice counts once.
        review: that the page has read, as `ReviewInfo` has it; another may have taken its place at this port.
        item: key of what it is about.
        action: what is to be done.
        rows: the photos, all of them the item's.
        label: for an action that gives one.
    """

    model_config = ConfigDict(extra="forbid")

    id: Number
    review: str
    item: Annotated[str, Field(max_length=300)]
    action: Literal["accept", "relabel", "new", "reject", "skip"]
    rows: Annotated[list[int], Field(min_length=1, max_length=_MOST_ROWS)]
    label: Annotated[str, Field(max_length=1000)] | None = None


class UndoRequest(BaseModel):
    """A press that takes the last one back; `id` and `review` as in `AnnotationRequest`."""

    model_config = ConfigDict(extra="forbid")

    id: Number
    review: str
