"""What a person is to look at, and in what order."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from lmm_classifier.labelling.run_store import LabellingRun
from lmm_classifier.types import UNKNOWN

_RANKS = {"uncertain": 2.0, "unknown": 1.0, "known": 0.0}


@dataclass(frozen=True, slots=True)
class ReviewItem:
    """One question to a person.

    Attributes:
        kind: a photo, or a group that may be decided as a whole.
        rows: numbers of the photos to look at first.
        members: numbers of all photos that the decision is for; of a photo, that one.
        suggestion: label that one key accepts; None where there is none.
        priority: larger comes earlier.
        reason: a sentence why it is asked.
        group: id of the group, the same whenever the order is made anew; None for a photo.
    """

    kind: Literal["group", "photo"]
    rows: tuple[int, ...]
    members: tuple[int, ...]
    suggestion: str | None
    priority: float
    reason: str
    group: str | None = None

    @property
    def key(self) -> str:
        """What it is known by to the page."""
        return f"photo-{self.rows[0]}" if self.kind == "photo" else f"group-{self.group}"


Order = Callable[[Mapping[int, str | None]], Sequence[ReviewItem]]
"""Makes the queue, first item first, of what is decided by now: number of a photo -> label, None if it is not
wanted. Each readable photo is in one item, decided or not, and a group in each queue or in none."""


def by_certainty(run: LabellingRun, _: Mapping[int, str | None]) -> tuple[ReviewItem, ...]:
    """Every photo that could be read: uncertain ones first, then unknown ones, each the least sure first.

    Raises:
        RunError: the run is damaged.
    """
    columns = run.columns("label", "status", "certainty", "score", "reason").to_pydict()
    found = []
    for row, label in enumerate(columns["label"]):
        if label is None:
            continue
        certainty = columns["certainty"][row]
        sure = columns["score"][row] if certainty is None else certainty
        suggestion = None if label == UNKNOWN else label
        priority = _RANKS[columns["status"][row]] - sure
        found.append(ReviewItem("photo", (row,), (row,), suggestion, priority, columns["reason"][row]))
    return tuple(sorted(found, key=lambda item: -item.priority))
